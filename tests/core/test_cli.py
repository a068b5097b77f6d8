"""The command line: how flags and files of flags are taken and refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import sweep
import train as main_program
from conftest import ROOT
from core.cli import run_program
from training.config import SETTINGS, RunConfig
from training.files import write_config
from training.hints import HINTS


def typed(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=os.environ | environment)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "foo"], "--optimizer foo: must be one of 'sgd', 'adam'"),
        (["--epochs", "3", "--plain_epochs", "4"], "--plain_epochs 4: more than the run's 3 epochs"),
        (["--learning_rate", "1"], "--learning_rate: no such flag; did you mean --lr?"),
        (["--ckpt-path", "x"], "--ckpt_path: no such flag; did you mean --resume?"),
        (["--num_workers", "4"], "--num_workers: no such flag: there are no workers: whole batches are made in memory"),
        (["--patience=3"], "--patience: no such flag: there is no early stopping"),
        (["--sparkle"], "--sparkle: no such flag; see --help"),
        (["--epoch", "3"], "--epoch: no such flag; did you mean --epochs?"),
        (["--batch-sizes=3"], "--batch_sizes: no such flag; did you mean --batch_size?"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--find_lr", "--resume", "x"], "--find_lr: not with --resume"),
        (["spare"], "unrecognized arguments: spare"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "n" * 300], "name too long"),
        (["--", "--spare"], "unrecognized arguments: -- --spare"),
    ],
)
def test_a_bad_flag_gets_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = typed(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(
    "content",
    [
        b"lr: &a [1, 2]\nmirror: [*a, *a]\n",
        b"lr: !!python/object/apply:os.getcwd []\n",
        b"learning_rate: 0.1\n",
        b"epochs: ten\n",
        b"lr: [1, 2\n",
        b"1: 2\n",
        b"resume: 5\n",
        b"lr: [0.1]\n",
        b"format: 99\n",
        b"format: 3\nlr: 0.1\n",
        bytes(range(256)),
    ],
)
def test_a_bad_recipe_gets_one_line_and_status_2(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    done = typed("--config", str(tmp_path / "recipe.yaml"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("train.py: ") and "recipe.yaml: " in done.stderr


def given(*arguments: str) -> dict[str, object]:
    """The flags that a command line gives."""
    flags = vars(main_program.make_parser().parse_args(arguments))
    return {name: value for name, value in flags.items() if name in SETTINGS}


def test_help_explains_every_flag_in_groups() -> None:
    text = " ".join(typed("--help", COLUMNS="200").stdout.split())
    for name in SETTINGS:
        assert f"--{name} " in text
    assert text.count("(default: ") == len(SETTINGS)
    for title in ("Optimization:", "Augmentation:", "Preprocessing:", "Hardware:", "Output:"):
        assert title in text


def test_the_recipes_are_valid() -> None:
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert RunConfig(**given("--config", str(recipe)))  # type: ignore[arg-type]


def test_hyphens_and_underscores_are_the_same() -> None:
    assert given("--batch-size", "64", "--fast-dev-run") == {"batch_size": 64, "fast_dev_run": True}


def test_a_flag_beside_a_recipe_wins_wherever_it_stands() -> None:
    twice = ["--crop", "1", "--config", "coursework", "--config", "best"]
    for line in (["--config", "best", "--crop", "1"], ["--crop=1", "--config=best"], twice):
        flags = given(*line)
        assert flags["crop"] == 1 and flags["cutout"] == 8


def test_another_optimizer_than_that_of_the_recipe_has_its_own_rate_and_weight_decay() -> None:
    assert given("--config", "coursework")["lr"] == 0.005
    config = RunConfig(**given("--config", "coursework", "--optimizer", "adamw"))  # type: ignore[arg-type]
    assert (config.lr, config.weight_decay, config.schedule) == (0.002, 0.01, "constant")
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


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_recipe_is_utf8_with_any_line_ends(tmp_path: Path, ending: str, mark: str) -> None:
    path = tmp_path / "r\u00e9cipe.yaml"
    path.write_bytes((mark + ending.join(["# \u00fc", "tag: \u00e4-1", "lr: 1e-3", ""])).encode())
    assert given("--config", str(path)) == {"tag": "\u00e4-1", "lr": 0.001}


NARROW = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # an encoding of ASCII alone


@pytest.mark.skipif(os.name != "posix", reason="no such locale")
def test_a_recipe_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "r\u00e9cipe.yaml"
    path.write_bytes("# \u00fc\ntag: \u00e4-1\n".encode())
    done = typed("--config", str(path), "--print_config", **NARROW)
    assert yaml.safe_load(done.stdout)["tag"] == "\u00e4-1"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_lacks_a_letter_shows_its_code(encoding: str) -> None:
    code = "from core import cli; cli.run_program(lambda: print('\u00fc \u65e5'))"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=environment)
    assert done.stdout.decode(encoding).split() == ["\u00fc" if encoding == "cp1252" else "\\xfc", "\\u65e5"]


def test_a_name_that_the_system_cannot_write_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: print("\u00fc".encode("ascii"))) == 2
    assert "'\\xfc' is no name" in capsys.readouterr().err


def test_a_home_that_is_not_known_is_one_line_too(tmp_path: Path) -> None:
    done = typed("--config", "~no-such-user/recipe.yaml")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    bare = {name: value for name, value in os.environ.items() if name not in ("HOME", "USERPROFILE")}
    line = [sys.executable, str(ROOT / "train.py"), "--config", "best", "--print_config"]
    assert subprocess.run(line, env=bare, capture_output=True).returncode == 0


def test_the_configuration_that_is_printed_or_that_a_run_wrote_is_taken_back(tmp_path: Path) -> None:
    config = RunConfig(optimizer="adam", crop=4, data_dir=tmp_path)
    write_config(tmp_path, config)
    assert RunConfig(**given("--config", str(tmp_path / "config.yaml"))) == config  # type: ignore[arg-type]
    printed = yaml.safe_load(typed("--crop", "4", "--print_config").stdout)
    assert RunConfig(**printed) == RunConfig(crop=4)


def test_shells_can_complete_the_flags() -> None:
    assert "--batch_size" in typed("--print_completion", "bash").stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--lr 0", "--lr 0.0: must be above 0"),
        ("--accelerator x", "--accelerator x: must be one of 'auto', 'cpu'"),
        ("--strategy x", "--strategy x: must be one of 'auto', "),
        ("--devices x", "--devices x: must be a number of processes"),
        ("--network lenet5-bn --batch_size 1", "--batch_size 1: batch normalization needs two images in each process"),
        ("--batch_size 3 --devices 2", "--batch_size 3: does not divide by the 2 processes"),
        ("--network nowhere.py:Net", "nowhere.py: No such file"),
        ("--teacher nowhere.ckpt", "--teacher nowhere.ckpt: not there; python train.py --config teacher trains one"),
        ("--precision 16-mixed", "--precision 16-mixed: float16 needs a GPU"),
    ],
)
def test_a_bad_flag_is_refused_without_pytorch(line: str, said: str) -> None:
    code = "import sys, train; status = train.run_program(train.main)"
    code += "; sys.exit('torch' in sys.modules or 'pytorch_lightning' in sys.modules or status != 2)"
    done = subprocess.run([sys.executable, "-c", code, *line.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr


def test_a_hint_names_a_flag_or_says_why_there_is_none_and_is_no_flag_itself() -> None:
    known = {option[2:] for action in main_program.make_parser()._actions for option in action.option_strings}
    assert all(hint in known or " " in hint for hint in HINTS.values()) and not known & HINTS.keys()


def test_a_path_that_cannot_be_used_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        raise PermissionError(13, "the reason", "a/path")

    assert run_program(program) == 2
    assert capsys.readouterr().err.endswith(": a/path: the reason\n")


def test_a_notebooks_drawing_backend_that_is_not_installed_stops_no_program(command: list[str]) -> None:
    line = [*command, "--fast_dev_run", "--epochs", "1", "--batch_size", "50", "--val_size", "100", "--width", "1"]
    environment = os.environ | {"MPLBACKEND": "not-installed"}  # which matplotlib looks for when it is imported
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    programs = "train, evaluate, sweep, report, predict"  # before they choose a backend, none has imported matplotlib
    code = f"import sys, {programs}; print([name for name in sys.modules if name.startswith('matplotlib')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout == "[]\n"
