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
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock

import sweep as main_program
from conftest import ROOT, weights
from core.errors import UsageError
from experiments import grid
from experiments.runs import RESULTS, Run, list_texts, read_runs
from experiments.study import open_journal
from experiments.tables import write_table
from training.config import RunConfig, resolve_config

COURSEWORK = ROOT / "results" / "coursework" / "runs.csv"
BASE = "optimizer=adam batch_size=50 val_size=100 width=1 pictures=false threads=1"


class Sweeps:
    """The folders of the sweeps of one test, and the program."""

    def __init__(self, folder: Path, program: list[str], data_dir: Path) -> None:
        self.folder = folder
        self.start_of_line = [*program, "--data_dir", str(data_dir), "--name", "tried"]
        for name in ("log", "checkpoint"):
            self.start_of_line += [f"--{name}_dir", str(folder / name)]

    def start(self, *flags: str, base: str = "epochs=2", **options: Any) -> subprocess.Popen[str]:
        line = [*self.start_of_line, "--base", f"{BASE} {base}", *flags]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options)

    def run(self, *flags: str, base: str = "epochs=2") -> tuple[int, list[str], str]:
        """Exit status, lines on standard output, standard error."""
        process = self.start(*flags, base=base)
        output, errors = process.communicate(timeout=300)
        return process.returncode, output.splitlines(), errors

    def runs(self) -> list[Run]:
        return read_runs(self.folder / "log" / "tried")

    def read_finished(self) -> dict[str, Run]:
        return {run.name: run for run in self.runs() if run.result}

    def checkpoints(self, run: Run) -> Path:
        return self.folder / "checkpoint" / "tried" / run.name / run.version


@pytest.fixture
def sweeps(tmp_path: Path, program: Any, data_dir: Path) -> Sweeps:
    return Sweeps(tmp_path / "one", program("sweep"), data_dir)


def test_a_grid_is_run_once_in_folders_that_tell_what_was_swept(sweeps: Sweeps) -> None:
    status, lines, errors = sweeps.run("--grid", "lr=0.001 crop=0,2", "lr=1e-3 crop=0 seed=0")
    assert (status, errors) == (0, "")
    assert [run.name for run in sweeps.runs()] == [
        f"adam-lr0.001-bs50-epochs2-width1-{crop}val-size100-seed0" for crop in ("crop0-", "")
    ]
    assert [line.split("  ")[0] for line in lines] == ["1/2", "2/2", "next"]

    before = {run.folder: run.result for run in sweeps.runs()}
    status, lines, _ = sweeps.run("--grid", "lr=0.001 crop=0,2", "lr=0.004")
    assert status == 0 and len(lines) == 4
    after = {run.folder: run.result for run in sweeps.runs()}
    assert len(after) == 3 and before.items() <= after.items()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_stood_and_ends_as_one_that_was_not(
    sweeps: Sweeps, tmp_path: Path, program: Any, data_dir: Path
) -> None:
    flags = ("--grid", "seed=0,1 lr=0.001,0.002", "--workers", "2")
    whole = Sweeps(tmp_path / "whole", program("sweep"), data_dir)
    assert whole.run(*flags, base="epochs=20")[0] == 0

    pause, finished = random.Random(0), dict[str, Run]()
    for _ in range(3):
        process = sweeps.start(*flags, base="epochs=20")
        time.sleep(pause.uniform(5, 12))
        os.kill(process.pid, signal.SIGKILL)  # the sweep alone: its runs have to notice
        process.wait()
        assert finished.items() <= sweeps.read_finished().items()
        finished = sweeps.read_finished()
    assert sweeps.run(*flags, base="epochs=20")[0] == 0

    assert finished.items() <= sweeps.read_finished().items()  # not run again
    assert sweeps.read_finished().keys() == whole.read_finished().keys()
    for name, run in whole.read_finished().items():
        other = sweeps.read_finished()[name]
        assert run.result and other.result
        for figure in ("best_epoch", "val_acc", "test_acc", "test_loss"):
            assert getattr(run.result, figure) == getattr(other.result, figure)
        expected, found = (weights(s.checkpoints(r) / "last.ckpt") for s, r in ((whole, run), (sweeps, other)))
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_ctrl_c_stops_the_runs_and_another_command_trains_its_own_runs_only(sweeps: Sweeps) -> None:
    process = sweeps.start("--grid", "seed=0,1", "--workers", "2", base="epochs=500")
    while not list(sweeps.folder.rglob("last.ckpt")):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "sweep.py: stopped; the same command goes on\n"
    storage = open_journal(sweeps.folder / "log" / "tried" / "study.log")
    (name,) = optuna.get_all_study_names(storage)
    states = [trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).get_trials()]
    assert states.count("WAITING") == 2 and "RUNNING" not in states
    stopped = len(sweeps.runs())
    assert sweeps.run("--grid", "seed=2")[0] == 0
    assert [run.config.seed for run in sweeps.runs() if run.result] == [2] and len(sweeps.runs()) == stopped + 1


def test_a_failed_cell_is_shown_with_its_reason_and_run_again_on_request_only(sweeps: Sweeps) -> None:
    flags = ("--grid", "optimizer=sgd lr=1e30,0.01")
    for _ in range(2):
        status, lines, errors = sweeps.run(*flags)
        assert status == 1 and errors == "sweep.py: some runs failed; --retry runs them again\n"
        (failed,) = (line for line in lines if "  failed: " in line)
        assert "lr=1e30" in failed and "the training loss is" in failed
    assert len(sweeps.runs()) == 2
    assert sweeps.run(*flags, "--retry")[0] == 1
    assert len(sweeps.runs()) == 3


def test_a_search_tries_as_many_runs_as_asked_within_its_space(sweeps: Sweeps) -> None:
    flags = ("--search", "optimizer=sgd,adam lr=0.001..0.1 width=1..2", "--trials", "3")
    assert sweeps.run(*flags, base="epochs=1")[0] == 0
    for config in (run.config for run in sweeps.runs()):
        assert config.lr and 0.001 <= config.lr <= 0.1 and config.optimizer in ("sgd", "adam") and config.width < 3
    assert len(sweeps.runs()) == 3
    assert sweeps.run(*flags, base="epochs=1")[0] == 0
    assert len(sweeps.runs()) == 3


def table_of(sweeps: Sweeps, *planned: dict[str, Any]) -> Path:
    """A `runs.csv` as report.py writes it, with a run of each of these flags, on top of those of the sweeps; each
    reached a little less than the one before it.
    """
    base = dict(word.split("=") for word in f"{BASE} epochs=2".split())
    rows = []
    for number, flags in enumerate(planned):
        texts = list_texts(resolve_config(RunConfig(**base | flags)))
        score, test = 81.0 - number, 79.5
        results = {"best_epoch": 2, "best_val_acc": score, "test_acc_at_best_val": test, "seconds": 7.5}
        rows.append({"run": f"elsewhere/version_{number}"} | texts | results)
    path = sweeps.folder / "results" / "runs.csv"
    path.parent.mkdir(parents=True)
    write_table(path, pd.DataFrame(rows, columns=["run", *texts, *RESULTS]))
    return path


def test_the_best_cell_is_repeated_with_fresh_seeds(sweeps: Sweeps) -> None:
    planned = [("sgd", 0.05), ("adam", 0.002), ("adam", 0.1), ("sgd", 0.01)]
    table = table_of(sweeps, *({"optimizer": optimizer, "lr": lr} for optimizer, lr in planned))
    flags = ("--grid", "optimizer=sgd lr=0.01,0.05", "optimizer=adam lr=0.002,0.1", "--reuse", str(table))
    assert sweeps.run(*flags, "--best_per", "optimizer", "--repeat", "seed=1,2")[0] == 0
    repeated = sorted(run.name for run in sweeps.runs())
    assert repeated == [
        f"{name}-bs50-epochs2-width1-val-size100-seed{seed}"
        for name in ("adam-lr0.002", "sgd-lr0.05")
        for seed in (1, 2)
    ]


def test_results_from_elsewhere_count_only_where_they_are_asked_for(sweeps: Sweeps) -> None:
    table = table_of(sweeps, {"lr": 0.001})
    status, lines, _ = sweeps.run("--grid", "lr=0.001,0.002", "--reuse", str(table))
    assert status == 0 and [run.config.lr for run in sweeps.runs()] == [0.002]
    assert any(f"lr=0.001  best epoch 2  val 81.00%  test 79.50%  from {table.as_posix()}" in line for line in lines)
    status, lines, _ = sweeps.run("--grid", "lr=0.001,0.002")
    assert status == 0 and [run.config.lr for run in sweeps.runs()] == [0.001, 0.002] and "from" not in lines[0]


@pytest.mark.parametrize("other", [{"denoise": "median"}, {"plain_epochs": "1"}])
def test_another_experiment_does_not_take_the_results_of_one_that_lacked_its_flag(
    tmp_path: Path, other: dict[str, str]
) -> None:
    sweep = grid.Sweep("coursework", "", None, *[tmp_path] * 3, COURSEWORK)  # type: ignore[call-arg]
    assert len(sweep.read_finished()) == 27
    texts = {"optimizer": "sgd", "lr": "0.005", "batch_size": "64", "epochs": "90"}
    for same in ({}, {"normalize": "dataset"}):  # which the recipe has
        assert sweep.make_config(texts | same).identity() in sweep.read_finished()
    assert sweep.make_config(texts | other).identity() not in sweep.read_finished()


def test_a_second_sweep_of_that_name_is_refused(sweeps: Sweeps) -> None:
    with FileLock(sweeps.folder / "log" / "tried" / "sweep.lock"):
        status, _, errors = sweeps.run("--grid", "seed=0")
    assert status == 2 and errors.endswith("another sweep.py is at it\n")


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
        grid.Sweep("coursework", "", None, *[tmp_path] * 3, table)  # type: ignore[call-arg]


def test_a_file_in_the_way_of_a_folder_is_named(sweeps: Sweeps) -> None:
    sweeps.folder.mkdir()
    (sweeps.folder / "log").write_text("")
    status, _, errors = sweeps.run("--grid", "seed=0")
    assert status == 2 and errors.count("\n") == 1 and str(sweeps.folder / "log") in errors


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "nothing to run"),
        ({"grid": ["lr"]}, "lr: must be flag=value"),
        ({"grid": ["lr=0.1,"]}, "must be flag=value"),
        ({"grid": ["lr=0.1 lr=0.2"]}, "lr=0.2: lr is there twice; several values are lr=0.1,0.2"),
        ({"grid": ["learning_rate=0.1"]}, "no flag of train.py that a sweep can set; did you mean lr?"),
        ({"grid": ["patience=3"]}, "that a sweep can set: there is no early stopping"),
        ({"grid": ["log_dir=/tmp"]}, "no flag of train.py that a sweep can set"),
        ({"grid": ["lr=-1"]}, "lr -1.0: must be above 0"),
        ({"grid": ["seed=0"], "repeat": "seed=1"}, "--best_per FLAG --repeat GRID"),
        ({"grid": ["seed=0"], "name": "../x"}, "name ../x: must be letters"),
        ({"grid": ["seed=0"], "workers": 0}, "workers 0: must be from 1 to"),
        (
            {"recipe": "coursework", "grid": ["lr=0.1,0.2"], "best_per": "lr", "repeat": "seed=1"},
            "--best_per: chooses by validation",
        ),
        ({"grid": ["seed=0"], "reuse": Path("nowhere.csv")}, "nowhere.csv: No such file"),
        ({"search": ["tag=a..b"]}, "tag=a..b: has neither a range"),
        ({"search": ["lr=0.1..0.01"]}, "a range is two numbers"),
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
        texts, table = yaml.safe_load(path.read_text()), ROOT / "results" / path.stem / "runs.csv"
        sweep = grid.Sweep(texts.get("recipe"), texts["base"], texts.get("name"), *[tmp_path] * 3, table)  # type: ignore[call-arg]
        assert sweep.name == path.stem
        keys = {run.key for text in texts["grid"] for run in sweep.expand_grid(text)}
        assert keys <= sweep.read_finished().keys()
        sizes[path.stem] = len(keys)
    assert sizes["coursework"] == 27 and sizes["optimizers"] == 24 and sizes["recipes"] == 30
