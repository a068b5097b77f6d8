"""Checkpoints: what is read, and what is refused."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifar10.config import Data, Preprocessing
from cifar10.filters import ZCA_SIDE
from conftest import ROOT
from core.errors import UsageError
from core.settings import FORMAT
from made_up import (
    FLAGS,
    OWN_NETWORKS,
    PREPROCESSED,
    STATE,
    change_entries,
    own_network,
    write_checkpoint,
)
from models.checkpoint import load_checkpoint
from models.classifier import load_classifier
from models.config import Network
from models.registry import hash_network, make_network
from training.config import RunConfig

IMAGES = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ZCA = PREPROCESSED | {"normalize": "zca"}
FILTER = torch.zeros(3, 3 * ZCA_SIDE**2 + 1)  # of the right shape


def test_a_checkpoint_of_the_present_format_says_all_itself(tmp_path: Path) -> None:
    config = RunConfig(width=1, denoise="median", normalize="image", val_size=100, split_seed=3)
    state = {"preprocessing": config.group(Preprocessing).plain()}
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "a.ckpt", state=state, **config.plain()))
    assert checkpoint.flags == config.plain()
    for kind, found in ((Network, checkpoint.network), (Data, checkpoint.data)):
        assert found == config.group(kind)
    assert checkpoint.preprocessing == config.group(Preprocessing)


def test_what_a_checkpoint_writes_is_read_as_the_same(tmp_path: Path) -> None:
    first = load_checkpoint(write_checkpoint(tmp_path / "a.ckpt", state={"preprocessing": ZCA, "whitening": FILTER}))
    torch.save(first.to_entries(), tmp_path / "b.ckpt")
    second = load_checkpoint(tmp_path / "b.ckpt")
    for name in ("flags", "epoch", "network", "data", "preprocessing", "class_names"):
        assert getattr(first, name) == getattr(second, name)
    assert first.whitening is not None and second.whitening is not None
    assert np.array_equal(first.whitening, second.whitening)
    assert all(torch.equal(value, second.state_dict[name]) for name, value in first.state_dict.items())


@pytest.mark.parametrize("format", [FORMAT - 1, FORMAT + 1, None])
def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, format: Any) -> None:
    path = change_entries(write_checkpoint(tmp_path / "other.ckpt"), format=format)
    with pytest.raises(UsageError, match=rf"^{path}: has format {format}, .* commit 9edcdda is the last") as raised:
        load_checkpoint(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("missing", ["width", "val_size"])
def test_a_checkpoint_that_lacks_a_setting_of_its_format_is_refused(tmp_path: Path, missing: str) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt")
    change_entries(path, flags={name: value for name, value in FLAGS.items() if name != missing})
    with pytest.raises(UsageError, match=rf"a\.ckpt: lacks {missing}$"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"flags": [1, 2]},
        {"flags": FLAGS | {"width": "wide"}},
        {"flags": FLAGS | {"width": 2}},
        {"flags": FLAGS | {"network": "vgg"}},
        {"epoch": "last"},
        {"state_dict": 3},
        {"state_dict": {}},
        {"state_dict": {"model.fc3.bias": 1}},
        {"CIFAR10DataModule": None},
        {"CIFAR10DataModule": STATE | {"mean": 0.5}},
        {"CIFAR10DataModule": STATE | {"std": torch.ones(4)}},
        {"CIFAR10DataModule": STATE | {"preprocessing": [1]}},
        {"CIFAR10DataModule": STATE | {"preprocessing": PREPROCESSED | {"sharpen": 2}}},
        {"CIFAR10DataModule": STATE | {"preprocessing": PREPROCESSED | {"denoise": "sharpen"}}},
        {"CIFAR10DataModule": STATE | {"preprocessing": {}}},
        {"CIFAR10DataModule": STATE | {"preprocessing": ZCA}},
        {"CIFAR10DataModule": STATE | {"whitening": FILTER}},
        {"temperature": "high"},
    ],
    ids=str,
)
def test_entries_that_are_not_what_they_should_be_are_one_line(tmp_path: Path, entries: dict[str, Any]) -> None:
    change_entries(write_checkpoint(tmp_path / "odd.ckpt"), **entries)
    with pytest.raises(UsageError, match=r"^\S+odd\.ckpt: \w+ ") as raised:
        load_classifier(tmp_path / "odd.ckpt")
    assert "\n" not in str(raised.value)


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"^{tmp_path}: a folder without last\.ckpt$"):
        load_checkpoint(tmp_path)
    write_checkpoint(tmp_path / "last.ckpt")
    assert load_checkpoint(tmp_path).path == tmp_path / "last.ckpt"
    for name in ("best-epoch=10-val_acc=0.7100.ckpt", "best-epoch=09-val_acc=0.7200.ckpt"):  # a kill may leave both
        write_checkpoint(tmp_path / name)
    assert load_checkpoint(tmp_path).path.name == "best-epoch=09-val_acc=0.7200.ckpt"
    assert load_checkpoint(tmp_path, last=True).path == tmp_path / "last.ckpt"


def test_any_damage_to_a_checkpoint_is_one_line_or_harmless(tmp_path: Path) -> None:
    content = write_checkpoint(tmp_path / "whole.ckpt").read_bytes()
    draw = random.Random(0)
    ends = [*range(3000), *range(len(content) - 3000, len(content))]  # the pickle, and the list of what is where
    for number in range(150):
        damaged = bytearray(content)
        for _ in range(1 + number % 5):
            damaged[draw.choice(ends)] = draw.randrange(256)
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(damaged[: draw.randrange(len(damaged)) if number % 5 == 0 else None])
        try:
            load_classifier(path)
        except UsageError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


def test_a_checkpoint_brings_no_code(tmp_path: Path) -> None:
    name = own_network(tmp_path, "Perceptron")
    path = write_checkpoint(tmp_path / "a.ckpt", make_network(name), network=name, width=3)
    trap = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(trap)!r}, 'w')\n" + OWN_NETWORKS["Perceptron"])
    with pytest.raises(UsageError, match=r"a\.ckpt: its network is .*a checkpoint holds no code") as raised:
        load_checkpoint(path)
    assert "\n" not in str(raised.value) and not trap.exists()
    load_classifier(path, network=name)
    assert trap.exists()


def test_the_code_of_a_network_may_have_moved_but_not_changed(tmp_path: Path) -> None:
    here, there = own_network(tmp_path / "a", "Perceptron"), own_network(tmp_path / "b", "Perceptron")
    settings: dict[str, Any] = {"network": here, "network_sha256": hash_network(here), "width": 3}
    path = write_checkpoint(tmp_path / "a.ckpt", make_network(here), **settings)
    (tmp_path / "a" / "own.py").unlink()
    checkpoint = load_checkpoint(path, there)
    assert checkpoint.network == replace(Network(), network=there, network_sha256=hash_network(there))
    assert checkpoint.flags["network"] == there
    checkpoint.make_network()
    (tmp_path / "b" / "own.py").write_text(OWN_NETWORKS["Perceptron"].replace("Tanh", "ReLU"))
    with pytest.raises(UsageError, match="not the file that the run used"):
        load_classifier(path, network=there)


def test_the_network_that_is_named_has_to_be_that_of_the_run(tmp_path: Path) -> None:
    own = own_network(tmp_path, "Perceptron")
    of_its_own = write_checkpoint(tmp_path / "own.ckpt", make_network(own), network=own, width=3)
    known = write_checkpoint(tmp_path / "known.ckpt")
    assert load_checkpoint(known, "lenet5").network.network == "lenet5"
    for path, name in ((known, own), (known, "resnet"), (of_its_own, "lenet5"), (of_its_own, f"{own}2")):
        with pytest.raises(UsageError, match=r"its network is .*, not "):
            load_checkpoint(path, name)
    with pytest.raises(UsageError, match="not vgg"):
        load_checkpoint(of_its_own, "vgg")


def test_released_weights_load_though_they_lack_folders_and_tags() -> None:
    checkpoint = load_checkpoint(ROOT / "checkpoints" / "lenet5-cifar10.ckpt")
    assert "data_dir" not in checkpoint.flags and checkpoint.data == Data(val_size=2500)
    assert checkpoint.preprocessing == Preprocessing(normalize="zca-half")
    assert checkpoint.network == Network(network="lenet5") and checkpoint.epoch == 247
    assert load_classifier(checkpoint.path)(IMAGES).shape == (5, 10)
