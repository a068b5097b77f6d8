"""The configuration of a run: its settings, their checks, and how it is written and read."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.strategies import StrategyRegistry

from cifar10.config import DataConfig
from cifar10.filters import CORRUPT, DENOISE
from cifar_datamodule import CIFAR10DataModule
from conftest import ROOT
from core import settings
from core.errors import UsageError
from core.settings import FORMAT
from lenet_module import LeNetModule
from models.config import ModelConfig
from models.optimizers import OPTIMIZERS, SCHEDULES
from training.config import GROUPS, SETTINGS, RunConfig, read_config
from training.files import CONFIG, read_run_config, write_config


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"lr": float("nan")}, "lr nan: must be a number"),
        ({"lr": "fast"}, "lr fast: must be a number"),
        ({"epochs": "1.5"}, "epochs 1.5: must be a whole number"),
        ({"epochs": True}, "epochs True: must be a whole number"),
        ({"epochs": "9" * 400}, "must be at least 1 and at most 1000000"),
        ({"epochs": "9" * 5000}, "must be a whole number"),
        ({"momentum": "0." + "9" * 400}, "momentum 1.0: must be at least 0 and below 1"),
        ({"flip": "maybe"}, "flip maybe: must be true or false"),
        ({"val_size": 7}, "val_size 7: must be a multiple of 10"),
        ({"val_size": -10}, "val_size -10: must be at least 0"),
        ({"val_size": 50_000}, "val_size 50000: "),
        ({"batch_size": 0}, "batch_size 0: must be at least 1"),
        ({"crop": 32}, "crop 32: must be at least 0 and at most 31"),
        ({"cutout": 33}, "cutout 33: must be at least 0 and at most 32"),
        ({"random_corruption": 1.5}, "random_corruption 1.5: must be at least 0 and at most 1"),
        ({"severity": 3}, "severity 3: needs corrupt"),
        ({"denoise": "median", "denoise_strength": 4}, "denoise_strength 4: must be an odd number"),
        ({"denoise": "median", "denoise_strength": 33}, "denoise_strength 33: must be above 0 and at most 31"),
        ({"denoise": "gaussian", "denoise_strength": 0}, "denoise_strength 0.0: must be above 0"),
        ({"corrupt": "jpeg", "severity": 6}, "severity 6: must be at least 1 and at most 5"),
        ({"corrupt_on": "both"}, "corrupt_on both: needs corrupt"),
        ({"denoise_strength": 1}, "denoise_strength 1: needs denoise"),
        ({"corruption_versions": 3, "random_corruption": 0}, "corruption_versions 3: needs random_corruption"),
        ({"select_on": "test"}, "so it needs val_size 0"),
        ({"batch_size": 50_000}, "batch_size 50000: more than the training images"),
        ({"network": "resnet", "width": 1}, "width 1: only lenet5 or lenet5-bn has one"),
        ({"network": "vgg"}, "network vgg: must be one of 'lenet5', 'lenet5-bn', 'resnet', or file.py:Class"),
        ({"tag": "a b"}, "tag a b: must be letters"),
    ],
)
def test_a_value_that_is_none_is_refused_with_its_name_and_what_it_must_be(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        RunConfig(**flags)


def test_texts_become_plain_values() -> None:
    texts: dict[str, Any] = {"lr": "1e-3", "epochs": "3", "flip": "false", "devices": "2", "tag": "null"}
    config = RunConfig(**texts, precision="bf16-true", data_dir=Path("~/x"))
    assert (config.lr, config.epochs, config.flip, config.devices, config.tag) == (0.001, 3, False, 2, None)
    assert config.precision == "bf16-true" and config.data_dir == Path.home() / "x"
    assert {type(value) for value in config.plain().values()} <= {int, float, bool, str, type(None)}


def test_each_setting_belongs_to_one_group_and_has_a_help_line() -> None:
    assert SETTINGS.keys() == {each.name for each in dataclasses.fields(RunConfig)}
    assert len(SETTINGS) == sum(len(dataclasses.fields(group)) for group in GROUPS)
    assert all(len(each.metadata["help"]) > 8 for each in SETTINGS.values())


def test_the_halves_train_by_default_what_train_py_trains() -> None:
    run = RunConfig()
    assert CIFAR10DataModule().config == run.group(DataConfig)
    assert LeNetModule().config == run.group(ModelConfig)


def test_what_a_run_writes_down_is_read_back_and_has_a_format(tmp_path: Path) -> None:
    config = RunConfig(optimizer="adam", tag="é-1".encode().decode(), data_dir=tmp_path / "a b")
    write_config(tmp_path, config)
    assert read_run_config(tmp_path) == config
    assert yaml.safe_load((tmp_path / CONFIG).read_text(encoding="utf-8"))["format"] == FORMAT


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": FORMAT + 1}, "has format 5, and this version reads format 4 only; commit 9edcdda is the last that"),
        ({"format": 1}, "has format 1, and this version reads format 4 only; commit 9edcdda is the last that reads"),
        ({"colour": "red"}, "has colour, which this version does not know"),
        ({"lr": -1}, "lr -1.0: must be above 0"),
        ({"normalize": None}, "normalize None: must be one of"),
    ],
)
def test_a_configuration_of_another_format_or_with_what_is_not_known_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"format": FORMAT} | RunConfig().plain() | change))
    with pytest.raises(UsageError, match=f"config.yaml: .*{said}"):
        read_run_config(tmp_path)


def test_a_configuration_lacks_nothing_that_makes_it_another_one() -> None:
    values = RunConfig().plain()
    for name, each in SETTINGS.items():
        part = {key: value for key, value in values.items() if key != name}
        if not each.metadata["identity"]:
            assert read_config(part) == RunConfig()
            continue
        with pytest.raises(UsageError, match=f"lacks {name}"):
            read_config(part)


def test_a_flag_that_is_added_is_seen_everywhere(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One field more in a copy of the configuration."""
    import subprocess
    import sys

    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (*ROOT.glob("*.py"), *(path.parent for path in ROOT.glob("*/__init__.py"))):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, copy / path.name)
    file = copy / "cifar10" / "config.py"
    field = '    sharpen: int = setting(0, "How sharp the images are.", at_least=0, at_most=9)\n'
    text = file.read_text()
    assert text.count("    crop: int = setting(") == 1
    file.write_text(text.replace("    crop: int = setting(", field + "    crop: int = setting("))

    code = (
        "from experiments.grid import Sweep; from training.config import RunConfig;"
        "from experiments.config import SweepSettings; from experiments.runs import COLUMNS; import train;"
        "p = Sweep(SweepSettings());"
        "print([cell.assigned for cell in p.expand_grid('sharpen=1,2')], p.make_config({'sharpen': '2'}).name,"
        " 'sharpen' in COLUMNS, RunConfig(sharpen=4).plain()['sharpen'],"
        " '--sharpen N' in train.make_parser().format_help())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[{'sharpen': '1'}, {'sharpen': '2'}] sgd-lr0.05-bs128-sharpen2-seed0 True 4 True\n"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({}, "sgd-lr0.05-bs128-seed0"),
        ({"optimizer": "adam", "lr": "1e-4", "seed": 7}, "adam-lr0.0001-bs128-seed7"),
        ({"denoise": "median", "segment": "otsu"}, "sgd-lr0.05-bs128-median-otsu-seed0"),
        ({"denoise": "gaussian", "denoise_strength": 2}, "sgd-lr0.05-bs128-gaussian-denoise-strength2-seed0"),
        (
            {"corrupt": "gaussian", "severity": 5, "corrupt_on": "both"},
            "sgd-lr0.05-bs128-corrupt-gaussian-severity5-corrupt-on-both-seed0",
        ),
        ({"normalize": "none", "flip": False, "crop": 0}, "sgd-lr0.05-bs128-crop0-no-flip-no-normalize-seed0"),
        ({"optimizer": "adamw", "weight_decay": 0}, "adamw-lr0.004-bs128-wd0-seed0"),
        ({"network": "my dir/own.py:Net", "network_sha256": "0" * 64}, "sgd-lr0.05-bs128-Net-seed0"),
        ({"teacher": "t", "teacher_sha256": "0123456789"}, "sgd-lr0.05-bs128-teacher-01234567-seed0"),
        ({"devices": "0,1", "accelerator": "gpu"}, "sgd-lr0.05-bs128-gpu-devices0-1-seed0"),
        ({"network": "resnet", "tag": "teacher."}, "sgd-lr0.05-bs128-seed0-teacher"),
    ],
)
def test_the_name_of_a_run_says_what_differs_from_the_defaults(flags: dict[str, Any], name: str) -> None:
    assert RunConfig(**flags).name == name


def test_a_long_name_is_cut_and_still_tells_runs_apart() -> None:
    names = [RunConfig(tag="a" * 150 + end).name for end in "bc"]
    assert [len(name) for name in names] == [100, 100] and names[0] != names[1]


def test_identities_differ_where_runs_do_and_only_there() -> None:
    run, defaults = RunConfig(), OPTIMIZERS["sgd"]
    same = RunConfig(lr=defaults.lr, weight_decay=defaults.weight_decay, log_dir=Path("x"), tag="y", threads=2)
    assert run.identity() == same.identity()
    changes: dict[str, Any] = {"seed": 1, "normalize": "none", "plain_epochs": 2, "precision": "bf16-mixed"}
    for change in ({name: value} for name, value in changes.items()):
        assert RunConfig(**change).identity() != run.identity()
    one, moved, other = (  # a teacher counts by what it knows and not by where it is
        RunConfig(teacher=Path(path), teacher_sha256=digest) for path, digest in (("a", "1"), ("b", "1"), ("a", "2"))
    )
    assert one.identity() == moved.identity() != other.identity()


def test_the_choices_of_a_setting_are_the_names_in_its_table() -> None:
    tables: dict[str, Any] = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "denoise": DENOISE, "corrupt": CORRUPT}
    for name, table in tables.items():
        assert settings.get_choices(settings.get_types(RunConfig)[name]) == tuple(table)


def test_the_devices_and_strategies_are_lightnings() -> None:
    types = settings.get_types(RunConfig)
    assert set(settings.get_choices(types["accelerator"])) == {"auto", "gpu", *AcceleratorRegistry}
    assert set(settings.get_choices(types["strategy"])) <= {"auto", *StrategyRegistry}


def test_values_that_belong_to_another_setting_do_not_outlive_its_change() -> None:
    run = RunConfig(lr=1, weight_decay=1, denoise="median", denoise_strength=5, corrupt="blur", severity=5)
    changed = run.changed({"optimizer": "adam", "denoise": "gaussian", "corrupt": "jpeg", "severity": "2"})
    assert (changed.lr, changed.weight_decay, changed.denoise_strength, changed.severity) == (0.004, 0, None, 2)
    assert run.changed({"optimizer": "sgd", "crop": 1}) == RunConfig(**run.plain() | {"crop": 1})
    assert run.changed({"optimizer": "adam", "lr": 3}).lr == 3
