"""Sweeps in processes of their own, on made-up data: what is run, what is not run again, what is told."""

import errno
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import sweep as door
from cifar10.errors import UsageError
from conftest import weights
from experiments import grid
from experiments.runs import Run, read_runs

BASE = "optimizer=adam batch_size=50 val_size=100 width=1 pictures=false threads=1"


class Sweeps:
    """The folders of the sweeps of one test, and the program."""

    def __init__(self, folder: Path, program: list[str], data_dir: Path) -> None:
        self.folder = folder
        self.start_of_line = [*program, "--data_dir", str(data_dir), "--name", "tried"]
        for name in ("log", "checkpoint", "results"):
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

    def finished(self) -> dict[str, Run]:
        return {run.name: run for run in self.runs() if run.result}

    def checkpoints(self, run: Run) -> Path:
        return self.folder / "checkpoint" / "tried" / run.name / run.version


@pytest.fixture
def sweeps(tmp_path: Path, program: Any, data_dir: Path) -> Sweeps:
    return Sweeps(tmp_path / "one", program("sweep"), data_dir)


def test_a_grid_is_run_once_in_folders_that_tell_what_was_swept(sweeps: Sweeps) -> None:
    status, lines, errors = sweeps.run("--grid", "lr=0.001 crop=0,2", "lr=1e-3 crop=0 seed=0")
    assert (status, errors) == (0, "")
    assert [run.name for run in sweeps.runs()] == [f"adam-lr0.001-bs50-seed0-crop-{crop}" for crop in (0, 2)]
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
    flags = ("--grid", "seed=0,1,2 lr=0.001,0.002", "--workers", "2")
    whole = Sweeps(tmp_path / "whole", program("sweep"), data_dir)
    assert whole.run(*flags, base="epochs=20")[0] == 0

    pause, finished = random.Random(0), dict[str, Run]()
    for _ in range(5):
        process = sweeps.start(*flags, base="epochs=20")
        time.sleep(pause.uniform(5, 12))
        os.kill(process.pid, signal.SIGKILL)  # the sweep alone: its runs have to notice
        process.wait()
        assert finished.items() <= sweeps.finished().items()
        finished = sweeps.finished()
    assert sweeps.run(*flags, base="epochs=20")[0] == 0

    assert finished.items() <= sweeps.finished().items()  # not run again
    assert sweeps.finished().keys() == whole.finished().keys()
    for name, run in whole.finished().items():
        other = sweeps.finished()[name]
        assert run.result and other.result
        for figure in ("best_epoch", "val_acc", "test_acc", "test_loss"):
            assert run.result[figure] == other.result[figure]
        expected, found = (weights(s.checkpoints(r) / "last.ckpt") for s, r in ((whole, run), (sweeps, other)))
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_ctrl_c_stops_the_runs_and_says_how_to_go_on(sweeps: Sweeps) -> None:
    process = sweeps.start("--grid", "seed=0,1", "--workers", "2", base="epochs=500")
    while not list(sweeps.folder.rglob("last.ckpt")):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "sweep.py: stopped; the same command goes on\n"
    states = [trial.state.name for trial in study(sweeps).get_trials()]
    assert states.count("WAITING") == 2 and "RUNNING" not in states


def test_cells_that_are_no_longer_asked_for_are_not_run(sweeps: Sweeps) -> None:
    process = sweeps.start("--grid", "seed=0,1", "--workers", "1", base="epochs=500")
    while not list(sweeps.folder.rglob("last.ckpt")):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert sweeps.run("--grid", "seed=2")[0] == 0
    assert [run.flags["seed"] for run in sweeps.runs() if run.result] == [2]
    assert len(sweeps.runs()) == 2


def study(sweeps: Sweeps) -> optuna.Study:
    return optuna.load_study(study_name="tried", storage=door.journal(sweeps.folder / "log" / "tried" / "study.log"))


def test_a_failed_cell_is_shown_with_its_reason_and_run_again_on_request_only(sweeps: Sweeps) -> None:
    flags = ("--grid", "optimizer=sgd lr=1e30,0.01")
    for _ in range(2):
        status, lines, errors = sweeps.run(*flags)
        assert status == 1 and errors == "sweep.py: some cells failed; --retry runs them again\n"
        (failed,) = (line for line in lines if "  failed: " in line)
        assert "lr=1e30" in failed and "the training loss is" in failed
    assert len(sweeps.runs()) == 2
    assert sweeps.run(*flags, "--retry")[0] == 1
    assert len(sweeps.runs()) == 3


def test_the_best_cell_is_repeated_with_fresh_seeds(sweeps: Sweeps) -> None:
    grid = ("--grid", "optimizer=sgd lr=1e-9,0.05", "optimizer=adam lr=0.002,1e-9")
    assert sweeps.run(*grid, "--best_per", "optimizer", "--repeat", "seed=1,2")[0] == 0
    repeated = sorted(run.name for run in sweeps.runs() if run.flags["seed"])
    assert repeated == [f"{name}-bs50-seed{seed}" for name in ("adam-lr0.002", "sgd-lr0.05") for seed in (1, 2)]


def test_a_search_tries_as_many_cells_as_asked_within_its_space(sweeps: Sweeps) -> None:
    flags = ("--search", "optimizer=sgd,adam lr=0.001..0.1 width=1..2", "--trials", "3")
    assert sweeps.run(*flags, base="epochs=1")[0] == 0
    for run in sweeps.runs():
        assert 0.001 <= run.flags["lr"] <= 0.1 and run.flags["optimizer"] in ("sgd", "adam") and run.flags["width"] < 3
    assert len(sweeps.runs()) == 3
    assert sweeps.run(*flags, base="epochs=1")[0] == 0
    assert len(sweeps.runs()) == 3


def test_cells_in_the_committed_table_are_not_run_again(sweeps: Sweeps) -> None:
    table = sweeps.folder / "results" / "tried" / "cells.csv"
    table.parent.mkdir(parents=True)
    table.write_text(
        "run,lr,seed,epochs,best_epoch,best_val_acc,test_acc_at_best_val,best_test_acc,last_test_acc,seconds\n"
        "adam-lr0.001-bs50-seed0,0.001,0,2,2,81.00,79.50,,,7.5\n"
    )
    status, lines, _ = sweeps.run("--grid", "lr=0.001,0.002")
    assert status == 0 and [run.flags["lr"] for run in sweeps.runs()] == [0.002]
    assert any("lr=0.001  best epoch 2  val 81.00%  test 79.50%" in line for line in lines)


def test_a_second_sweep_of_that_name_is_refused(sweeps: Sweeps) -> None:
    with door.FileLock(sweeps.folder / "log" / "tried" / "sweep.lock"):
        status, _, errors = sweeps.run("--grid", "seed=0")
    assert status == 2 and errors.endswith("another sweep.py is at it\n")


def test_what_was_chosen_on_the_test_set_is_not_called_validation(sweeps: Sweeps) -> None:
    table = sweeps.folder / "results" / "tried" / "cells.csv"
    table.parent.mkdir(parents=True)
    table.write_text(
        "seed,select_on,val_size,best_epoch,best_test_acc,last_test_acc,seconds\n0,test,0,2,81.0,79.5,7.5\n"
    )
    _, lines, _ = sweeps.run("--grid", "seed=0 select_on=test val_size=0")
    assert "test 81.00%, chosen on it" in lines[0] and "val 8" not in lines[0]


def test_a_table_that_report_did_not_write_is_named(sweeps: Sweeps) -> None:
    table = sweeps.folder / "results" / "tried" / "cells.csv"
    table.parent.mkdir(parents=True)
    table.write_text("lr,seed\n0.001,0\n")
    status, _, errors = sweeps.run("--grid", "seed=0")
    assert status == 2 and errors == f"sweep.py: {table}, line 2: not as report.py writes it\n"


def test_a_file_in_the_way_of_a_folder_is_named(sweeps: Sweeps) -> None:
    sweeps.folder.mkdir()
    (sweeps.folder / "log").write_text("")
    status, _, errors = sweeps.run("--grid", "seed=0")
    assert status == 2 and errors.count("\n") == 1 and str(sweeps.folder / "log") in errors


def test_what_ends_a_worker_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(plan: grid.Plan) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(grid.Plan, "finished", full)
    plan = grid.Plan(None, "", "tried", *[tmp_path] * 4)
    with door.open_study(plan, None) as study, pytest.raises(OSError, match="No space left"):
        door.Engine(study, plan, workers=2).run(plan.grid("seed=0,1,2"), retry=False)


def test_half_a_line_at_the_end_of_the_journal_is_dropped(sweeps: Sweeps) -> None:
    assert sweeps.run("--grid", "seed=0", base="epochs=1")[0] == 0
    with (sweeps.folder / "log" / "tried" / "study.log").open("a") as file:
        file.write('{"op_code":5,"trial')
    assert sweeps.run("--grid", "seed=0,1", base="epochs=1")[0] == 0
    assert len(sweeps.finished()) == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "nothing to run"),
        ({"grid": ["lr"]}, "lr: must be flag=value"),
        ({"grid": ["lr=0.1,"]}, "must be flag=value"),
        ({"grid": ["speed=1"]}, "speed=1: no flag of train.py that a sweep can set"),
        ({"grid": ["log_dir=/tmp"]}, "no flag of train.py that a sweep can set"),
        ({"grid": ["lr=-1"]}, "--lr -1.0: must be above 0"),
        ({"grid": ["seed=0"], "repeat": "seed=1"}, "--best_per FLAG --repeat GRID"),
        ({"grid": ["seed=0"], "name": "../x"}, "--name ../x: must be letters"),
        ({"grid": ["seed=0"], "workers": 0}, "--workers 0: must be above 0"),
        ({"search": ["lr=0.1"]}, "has neither a range"),
        ({"search": ["lr=0.1..0.01"]}, "a range is two numbers"),
        ({"search": ["lr=0.1..0.2 val_size=0"]}, "chooses by validation"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        door.sweep(**flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_machines_share_the_cells_of_a_database_and_take_over_those_of_one_that_died(
    sweeps: Sweeps, tmp_path: Path, program: Any, data_dir: Path
) -> None:
    url = os.environ.get("SWEEP_DATABASE")
    if not url:
        assert "CI" not in os.environ, ".ci/run starts a PostgreSQL and names it in SWEEP_DATABASE"
        pytest.skip("needs an empty PostgreSQL, whose URL is in SWEEP_DATABASE")
    other = Sweeps(tmp_path / "other", program("sweep"), data_dir)
    hasty = f"import sweep\nsweep.HEARTBEAT, sweep.GRACE = 1, 3\n{(tmp_path / 'sweep.py').read_text()}"
    (tmp_path / "sweep.py").write_text(f"import sys\nsys.path.insert(0, {str(grid.ROOT)!r})\n{hasty}")
    flags = ("--grid", "seed=0,1,2,3", "--workers", "1", "--storage", url)
    dying, living = (machine.start(*flags, base="epochs=40") for machine in (sweeps, other))
    while not list(sweeps.folder.rglob("last.ckpt")):
        time.sleep(0.1)
    assert dying.poll() is None
    os.killpg(dying.pid, signal.SIGKILL)
    output, errors = living.communicate(timeout=300)
    assert (living.returncode, errors) == (0, "")
    assert output.count("best epoch") == 4
    assert len(sweeps.finished()) + len(other.finished()) == 4
    states = [trial.state.name for trial in optuna.load_study(study_name="tried", storage=url).get_trials()]
    assert states.count("COMPLETE") == 4 and "RUNNING" not in states


def test_a_database_that_cannot_be_reached_is_one_line(sweeps: Sweeps) -> None:
    status, _, errors = sweeps.run("--grid", "seed=0", "--storage", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    assert status == 2 and errors.count("\n") == 1 and "--storage" in errors


def test_flags_are_read_without_a_change_of_the_working_directory_which_all_threads_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = *(tmp_path / folder for folder in ("data", "logs", "checkpoints")), grid.ROOT / "results"
    plan = grid.Plan("coursework", "", None, *folders)

    def refuse(path: str) -> None:
        raise AssertionError(path)

    monkeypatch.setattr("os.chdir", refuse)
    grid.all_flags.cache_clear()
    assert len(plan.finished()) == 9
    assert plan.flags({"seed": "7"})["epochs"] == 90


def test_a_row_that_ends_early_is_named(tmp_path: Path) -> None:
    rows = (grid.ROOT / "results" / "coursework" / "cells.csv").read_text().splitlines(keepends=True)
    table = tmp_path / "coursework" / "cells.csv"
    table.parent.mkdir()
    table.write_text("".join(rows[:2]) + rows[2][:-20])
    with pytest.raises(UsageError, match=r"cells\.csv, line 3: not as report\.py writes it"):
        grid.Plan("coursework", "", None, *[tmp_path] * 4).finished()


def test_the_sweeps_in_the_repository_are_the_reports_cells_and_the_study(tmp_path: Path) -> None:
    import yaml

    plans = {path.stem: yaml.safe_load(path.read_text()) for path in (grid.ROOT / "recipes" / "sweeps").glob("*.yaml")}
    sizes = {}
    for name, texts in plans.items():
        folders = *(tmp_path / folder for folder in ("data", "logs", "checkpoints")), grid.ROOT / "results"
        plan = grid.Plan(texts.get("recipe"), texts["base"], texts.get("name"), *folders)
        assert plan.name == name
        keys = {cell.key for text in texts["grid"] for cell in plan.grid(text)}
        assert keys <= plan.finished().keys()  # results/ has them all, so a clone runs none again
        sizes[name] = len(keys)
    assert sizes["coursework"] == 9 and sizes["sgd_vs_adam"] == 12
