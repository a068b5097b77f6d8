"""The command line: how flags and files of flags are taken and refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import sweep
import train as main_program
from conftest import ROOT
from core.cli import run_program
from training.config import SETTINGS, RunConfig
from training.files import write_config
from training.hints import HINTS

REFUSED = {
    "--optimizer foo": "--optimizer foo: must be one of 'sgd', 'adam'",
    "--epochs 3 --plain_epochs 4": "--plain_epochs 4: more than the run's 3 epochs",
    "--learning_rate 1": "--learning_rate: no such flag; did you mean --lr?",
    "--ckpt-path x": "--ckpt_path: no such flag; did you mean --resume?",
    "--patience=3": "--patience: no such flag: there is no early stopping",
    "--sparkle": "--sparkle: no such flag; see --help",
    "--epoch 3": "--epoch: no such flag; did you mean --epochs?",
    "--batch-sizes=3": "--batch_sizes: no such flag; did you mean --batch_size?",
    "--epochs": "argument --epochs: expected one argument",
    "--find_lr --resume x": "--find_lr: not with --resume",
    "spare": "unrecognized arguments: spare",
    "-- --spare": "unrecognized arguments: -- --spare",
    "--config nowhere.yaml": "nowhere.yaml: No such file",
    f"--config {'n' * 300}": "name too long",
    "--config ~no-such-user/recipe.yaml": "recipe.yaml: No such file",
    "--lr 0": "--lr 0.0: must be above 0",
    "--accelerator x": "--accelerator x: must be one of 'auto', 'cpu'",
    "--devices x": "--devices x: must be a number of processes",
    "--network lenet5-bn --batch_size 1": "--batch_size 1: batch normalization needs two images in each process",
    "--batch_size 3 --devices 2": "--batch_size 3: does not divide by the 2 processes",
    "--network nowhere.py:Net": "nowhere.py: No such file",
    "--teacher nowhere.ckpt": "--teacher nowhere.ckpt: not there; python train.py --config teacher trains one",
    "--precision 16-mixed": "--precision 16-mixed: float16 needs a GPU",
}
CALL = """
import json, sys, train
for line in json.loads(sys.argv[1]):
    sys.argv = ["train.py", *line.split()]
    try:
        status = train.run_program(train.main)
    except SystemExit as left:  # of argparse
        status = left.code
    assert status == 2 and not {"torch", "pytorch_lightning", "cv2", "matplotlib"} & sys.modules.keys()
"""


def test_a_bad_flag_is_refused_in_a_line_without_pytorch() -> None:
    line = [sys.executable, "-c", CALL, json.dumps(list(REFUSED))]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    for error, said in zip(done.stderr.splitlines(), REFUSED.values(), strict=True):
        assert error.startswith("train.py: ") and said in error


@pytest.mark.parametrize(
    "content",
    [
        b"lr: !!python/object/apply:os.getcwd []\n",
        b"learning_rate: 0.1\n",
        b"epochs: ten\n",
        b"lr: [1, 2\n",
        b"1: 2\n",
        b"resume: 5\n",
        b"lr: [0.1]\n",
        b"format: 3\nlr: 0.1\n",
        b"lr\n",
        bytes(range(256)),
    ],
)
def test_a_bad_recipe_is_refused_in_a_line(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(tmp_path / "recipe.yaml")])
    assert run_program(main_program.main) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("train.py: ") and "recipe.yaml: " in error


def given(*arguments: str) -> dict[str, object]:
    """The settings that a command line gives."""
    flags = vars(main_program.make_parser().parse_args(arguments))
    flags = {name: value for name, value in flags.items() if name in SETTINGS}
    config = RunConfig(**flags)
    return {name: getattr(config, name) for name in flags}


def show(*arguments: str, **environment: str) -> str:
    """What train.py prints."""
    line = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=True, env=os.environ | environment).stdout


def test_help_explains_every_flag_in_groups() -> None:
    text = " ".join(main_program.make_parser().format_help().split())
    for name in SETTINGS:
        assert f"--{name} " in text
    assert text.count("(default: ") == len(SETTINGS)
    for title in ("Optimization:", "Augmentation:", "Preprocessing:", "Hardware:", "Output:"):
        assert title in text


def test_the_recipes_are_valid() -> None:
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert given("--config", str(recipe))


def test_hyphens_and_underscores_are_the_same() -> None:
    assert given("--batch-size", "64", "--fast-dev-run") == {"batch_size": 64, "fast_dev_run": True}


def test_a_flag_beside_a_recipe_wins_wherever_it_stands() -> None:
    twice = ["--crop", "1", "--config", "coursework", "--config", "best"]
    for line in (["--config", "best", "--crop", "1"], ["--crop=1", "--config=best"], twice):
        flags = given(*line)
        assert flags["crop"] == 1 and flags["cutout"] == 8


def test_another_optimizer_than_that_of_the_recipe_has_its_own_rate_and_weight_decay() -> None:
    assert given("--config", "coursework")["lr"] == 0.005
    adamw = vars(main_program.make_parser().parse_args(["--config", "coursework", "--optimizer", "adamw"]))
    config = RunConfig(**{name: value for name, value in adamw.items() if name in SETTINGS})
    assert (config.lr, config.weight_decay, config.schedule) == (0.004, 0.01, "constant")
    assert given("--config", "coursework", "--optimizer", "sgd")["lr"] == 0.005
    assert given("--config", "coursework", "--optimizer", "adam", "--lr", "0.1")["lr"] == 0.1


def test_a_recipe_is_found_by_its_name_and_an_empty_one_is_no_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert given("--config", "coursework") == given("--config", str(ROOT / "recipes" / "coursework.yaml"))
    assert sweep.make_parser().parse_args(["--config", "optimizers"]).name == "optimizers"
    (tmp_path / "sweep.yaml").write_text("grid: optimizer=sgd lr=0.05\n")
    assert sweep.make_parser().parse_args(["--config", str(tmp_path / "sweep.yaml")]).grid == ["optimizer=sgd lr=0.05"]
    (tmp_path / "best").mkdir()
    monkeypatch.chdir(tmp_path)
    assert given("--config", "best")["epochs"] == 260
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert given("--config", str(tmp_path / "empty.yaml")) == {}


@pytest.mark.skipif(os.name != "posix", reason="no such locale")
def test_a_recipe_is_utf8_with_any_line_ends_and_locale(tmp_path: Path) -> None:
    path = tmp_path / "r\u00e9cipe.yaml"
    path.write_bytes("\ufeff# \u00fc\r\ntag: \u00e4-1\r\nlr: 1e-3\r\n".encode())
    printed = show("--config", str(path), "--print_config", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    flags = yaml.safe_load(printed)
    assert (flags["tag"], flags["lr"]) == ("\u00e4-1", 0.001)


def test_a_console_that_lacks_a_letter_shows_its_code() -> None:
    code = "from core import cli; cli.run_program(lambda: print('\u00fc \u65e5'))"
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=environment)
    assert done.stdout.decode("cp1252").split() == ["\u00fc", "\\u65e5"]


def test_the_configuration_that_is_printed_or_that_a_run_wrote_is_taken_back(tmp_path: Path) -> None:
    config = RunConfig(optimizer="adam", crop=4, data_dir=tmp_path)
    write_config(tmp_path, config)
    assert RunConfig(**given("--config", str(tmp_path / "config.yaml"))) == config  # type: ignore[arg-type]
    printed = yaml.safe_load(show("--crop", "4", "--print_config"))
    assert RunConfig(**printed) == RunConfig(crop=4)


def test_shells_can_complete_the_flags() -> None:
    assert "--batch_size" in show("--print_completion", "bash")


def test_a_hint_names_a_flag_or_says_why_there_is_none_and_is_no_flag_itself() -> None:
    known = {option[2:] for action in main_program.make_parser()._actions for option in action.option_strings}
    assert all(hint in known or " " in hint for hint in HINTS.values()) and not known & HINTS.keys()


def test_a_path_that_cannot_be_used_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        raise PermissionError(13, "the reason", "a/path")

    assert run_program(program) == 2
    assert capsys.readouterr().err.endswith(": a/path: the reason\n")


def test_a_notebooks_drawing_backend_that_is_not_installed_stops_no_program() -> None:
    code = "from core.cli import run_program; run_program(lambda: print(__import__('matplotlib').get_backend()))"
    environment = os.environ | {"MPLBACKEND": "not-installed"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stdout == "agg\n"
