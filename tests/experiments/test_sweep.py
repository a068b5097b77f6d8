"""Sweeps in processes of their own, on made-up data: what is run, what is not run again, what is told."""

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml

import sweep as main_program
from conftest import ROOT, weights
from core.errors import UsageError
from experiments.config import SweepSettings
from experiments.grid import Sweep
from experiments.runs import Run, read_runs
from experiments.study import open_journal

COURSEWORK = ROOT / "results" / "coursework" / "runs.csv"
BASE = "optimizer=adam batch_size=50 val_size=100 width=1 pictures=false threads=1"


class Sweeps:
    """The folders of the sweeps of one test, and the program."""

    def __init__(self, folder: Path, program: list[str], data_dir: Path) -> None:
        self.folder = folder
        self.start_of_line = [*program, "--data_dir", str(data_dir), "--name", "tried"]
        for name in ("log", "checkpoint"):
            self.start_of_line += [f"--{name}_dir", str(folder / name)]

    def start(self, *flags: str, base: str = "") -> subprocess.Popen[str]:
        line = [*self.start_of_line, "--base", f"{BASE} {base}", *flags]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            line,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )

    def runs(self) -> list[Run]:
        return read_runs(self.folder / "log" / "tried")

    def read_finished(self) -> dict[str, Run]:
        return {run.name: run for run in self.runs() if run.result}

    def checkpoints(self, run: Run) -> Path:
        return self.folder / "checkpoint" / "tried" / run.name / run.version


@pytest.fixture
def sweeps(tmp_path: Path, program: Any, data_dir: Path) -> Sweeps:
    return Sweeps(tmp_path / "one", program("sweep"), data_dir)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_stood_and_ends_as_one_that_was_not(
    sweeps: Sweeps, tmp_path: Path, program: Any, data_dir: Path
) -> None:
    flags = ("--grid", "seed=0,1 lr=0.001,0.002", "--workers", "2")
    whole = Sweeps(tmp_path / "whole", program("sweep"), data_dir)
    whole.start(*flags, base="epochs=20").communicate(timeout=300)

    pause, finished = random.Random(0), dict[str, Run]()
    for _ in range(3):
        process = sweeps.start(*flags, base="epochs=20")
        time.sleep(pause.uniform(5, 12))
        os.kill(process.pid, signal.SIGKILL)  # the sweep alone: its runs have to notice
        process.wait()
        assert finished.items() <= sweeps.read_finished().items()
        finished = sweeps.read_finished()
    sweeps.start(*flags, base="epochs=20").communicate(timeout=300)

    assert finished.items() <= sweeps.read_finished().items()  # not run again
    assert sweeps.read_finished().keys() == whole.read_finished().keys()
    for name, run in whole.read_finished().items():
        other = sweeps.read_finished()[name]
        assert run.result and other.result
        for figure in ("best_epoch", "val_acc", "test_acc", "test_loss"):
            assert getattr(run.result, figure) == getattr(other.result, figure)
        expected, found = (weights(s.checkpoints(r) / "last.ckpt") for s, r in ((whole, run), (sweeps, other)))
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_runs_end_fail_and_are_stopped(sweeps: Sweeps) -> None:
    short, long = "optimizer=sgd lr=1e30,0.01 epochs=1", "epochs=500"
    process = sweeps.start("--grid", short, long, "--workers", "2")
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(2)]  # of the two short runs
    while not list(sweeps.folder.rglob("*epochs500*/*/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert errors == "sweep.py: stopped; the same command goes on\n"
    failed, finished = sorted(line.partition("  ")[2] for line in lines)[::-1]
    assert failed.startswith("optimizer=sgd lr=1e30 epochs=1  failed: train.py: the training loss is")
    assert finished.startswith("optimizer=sgd lr=0.01 epochs=1  best epoch 1  val ")
    assert sweeps.read_finished().keys() == {"sgd-lr0.01-bs50-epochs1-width1-val-size100-seed0"}
    storage = open_journal(sweeps.folder / "log" / "tried" / "study.log")
    (name,) = optuna.get_all_study_names(storage)
    states = [trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).get_trials()]
    assert states.count("WAITING") == 1 and "RUNNING" not in states


@pytest.mark.parametrize("other", [{"denoise": "median"}, {"plain_epochs": "1"}])
def test_another_experiment_does_not_take_the_results_of_one_that_lacked_its_flag(
    tmp_path: Path, other: dict[str, str]
) -> None:
    sweep = Sweep(SweepSettings(recipe="coursework", log_dir=tmp_path, reuse=COURSEWORK))
    assert len(sweep.read_finished()) == 27
    texts = {"optimizer": "sgd", "lr": "0.005", "batch_size": "64", "epochs": "90"}
    for same in ({}, {"normalize": "dataset"}):  # which the recipe has
        assert sweep.make_config(texts | same).identity() in sweep.read_finished()
    assert sweep.make_config(texts | other).identity() not in sweep.read_finished()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "runs.csv: No such file"),
        ("", "runs.csv: damaged: No columns"),
        ("lr,seed\n0.001,0\n", "runs.csv: damaged: has no column run"),
        ("".join(COURSEWORK.read_text().splitlines(keepends=True)[:3])[:-40], "runs.csv, line 3: not as report.py"),
    ],
)
def test_a_table_that_report_did_not_write_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    table = tmp_path / "runs.csv"
    if content is not None:
        table.write_text(content)
    with pytest.raises(UsageError, match=re.escape(said)):
        Sweep(SweepSettings(recipe="coursework", reuse=table))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "nothing to run"),
        ({"grid": ["lr"]}, "lr: each flag once, as flag=value"),
        ({"grid": ["lr=0.1,"]}, "lr=0.1,: each flag once"),
        ({"grid": ["lr=0.1 lr=0.2"]}, "lr=0.2: each flag once, as flag=value or flag=value,value"),
        ({"grid": ["batchsize=64"]}, "no setting of a run; did you mean batch_size?"),
        ({"grid": ["log_dir=/tmp"]}, "log_dir=/tmp: no setting of a run"),
        ({"grid": ["lr=-1"]}, "lr -1.0: must be above 0"),
        ({"grid": ["seed=0"], "repeat": "seed=1"}, "--best_per FLAG --repeat GRID"),
        ({"grid": ["seed=0"], "name": "../x"}, "name ../x: must be letters"),
        ({"grid": ["seed=0"], "workers": 0}, "workers 0: must be at least 1"),
        (
            {"recipe": "coursework", "grid": ["lr=0.1,0.2"], "best_per": "lr", "repeat": "seed=1"},
            "--best_per: chooses by validation",
        ),
        ({"grid": ["seed=0"], "reuse": Path("nowhere.csv")}, "nowhere.csv: No such file"),
        ({"search": ["tag=a..b"]}, "tag=a..b: has neither a range"),
        ({"search": ["lr=0.1..0.01"]}, "lr=0.1..0.01: has neither a range"),
        ({"search": ["lr=0.1..0.2 val_size=0"]}, "chooses by validation"),
        (
            {"recipe": str(ROOT / "recipes" / "best.yaml"), "grid": ["seed=0"]},
            "not there; python train.py --config teach",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(said)):
        main_program.sweep(**flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_machines_share_the_runs_of_a_database_and_take_over_those_of_one_that_died(
    sweeps: Sweeps, tmp_path: Path, program: Any, data_dir: Path
) -> None:
    url = os.environ.get("SWEEP_DATABASE")
    if not url:
        assert "CI" not in os.environ, ".ci/run starts a PostgreSQL and names it in SWEEP_DATABASE"
        pytest.skip("needs an empty PostgreSQL, whose URL is in SWEEP_DATABASE")
    other = Sweeps(tmp_path / "other", program("sweep"), data_dir)
    hasty = f"from experiments import study\nstudy.HEARTBEAT, study.GRACE = 1, 3\n{(tmp_path / 'sweep.py').read_text()}"
    (tmp_path / "sweep.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{hasty}")
    flags = ("--grid", "seed=0,1,2,3", "--workers", "1", "--storage", url)
    dying, living = (machine.start(*flags, base="epochs=40") for machine in (sweeps, other))
    while not list(sweeps.folder.rglob("last.ckpt")):
        time.sleep(0.1)
    assert dying.poll() is None
    os.killpg(dying.pid, signal.SIGKILL)
    output, errors = living.communicate(timeout=300)
    assert (living.returncode, errors) == (0, "")
    assert output.count("best epoch") == 4
    assert len(sweeps.read_finished()) + len(other.read_finished()) == 4
    (name,) = optuna.get_all_study_names(url)
    states = [trial.state.name for trial in optuna.load_study(study_name=name, storage=url).get_trials()]
    assert states.count("COMPLETE") == 4 and "RUNNING" not in states


def test_the_sweeps_in_the_repository_are_the_runs_in_results(tmp_path: Path) -> None:
    sizes = {}
    for path in (ROOT / "recipes" / "sweeps").glob("*.yaml"):
        texts = yaml.safe_load(path.read_text())
        runs = texts.pop("grid")
        sweep = Sweep(SweepSettings(**texts, log_dir=tmp_path, reuse=ROOT / "results" / path.stem / "runs.csv"))
        assert sweep.name == path.stem
        keys = {run.key for text in runs for run in sweep.expand_grid(text)}
        assert keys <= sweep.read_finished().keys()
        sizes[path.stem] = len(keys)
    assert sizes["coursework"] == 27 and sizes["optimizers"] == 24 and sizes["recipes"] == 30
