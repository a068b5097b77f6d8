"""Sweeps whose runs are not trained: what is planned, what a search proposes, what counts as done."""

import errno
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock
from optuna.trial import TrialState, create_trial

import sweep as main_program
from core.cli import run_program
from core.errors import UsageError
from experiments.config import SweepSettings
from experiments.grid import Sweep
from experiments.runs import RESULTS, list_texts
from experiments.study import Engine, Failed, describe_trial, open_database, open_study
from experiments.tables import write_table
from training.config import RunConfig, resolve_config

RESULT: dict[str, Any] = {"select_on": "val", "best_epoch": 2, "val_acc": 0.8, "test_acc": 0.78, "seconds": 9.5}


def plan(folder: Path) -> Sweep:
    return Sweep(SweepSettings(name="tried", log_dir=folder, checkpoint_dir=folder))


class Untrained:
    """A sweep in a folder of its own, in which no run is trained."""

    def __init__(self, folder: Path, grid: str = "", storage: str | None = None) -> None:
        self.sweep, self.storage = plan(folder), storage
        self.planned = self.sweep.expand_grid(grid) if grid else self.sweep.expand_search("lr=0.001..0.1", 8)
        self.seen: list[dict[str, str]] = []  # the flags of each run

    def run(self, count: int = 8, workers: int = 1) -> dict[str, dict[str, Any]]:
        """The attributes of each finished run, after a process that is stopped when it has finished `count` runs."""
        with open_study(self.sweep, self.planned, self.storage) as study:
            engine = Engine(study, self.sweep, workers)

            def result(number: int, values: dict[str, str]) -> dict[str, Any]:
                if len(self.seen) == count:
                    engine.stopping.set()
                    raise Failed("stopped")
                self.seen.append(values)
                return RESULT | {"val_acc": float(values.get("lr", 0))}

            engine._result = result  # type: ignore[method-assign]
            engine.run(self.planned, retry=False)
            trials = engine.trials(self.planned).items()
            return {key: trial.user_attrs for key, trial in trials if trial.state == TrialState.COMPLETE}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The flags of each run that a sweep trains, below `tmp_path`: accuracies are made up, and lr=0.1 fails."""
    flags: list[dict[str, str]] = []

    def result(engine: Engine, number: int, values: dict[str, str]) -> dict[str, Any]:
        flags.append(values)
        if values["lr"] == "0.1":
            raise Failed("the reason")
        return RESULT | {"val_acc": 0.7 + float(values["lr"])}

    monkeypatch.setattr(Engine, "_result", result)
    monkeypatch.setattr(main_program, "prepare", lambda folder: None)
    monkeypatch.chdir(tmp_path)
    return flags


def test_no_run_is_repeated_but_a_failed_one_on_request(trained: list[dict[str, str]], capsys: Any) -> None:
    assert not main_program.sweep(grid=["lr=0.001,0.1", "lr=1e-3 seed=0"])
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["1/2", "2/2"]
    assert not main_program.sweep(grid=["lr=0.001,0.1"])
    assert "lr=0.1  failed: the reason\n" in capsys.readouterr().out
    assert sorted(flags["lr"] for flags in trained) == ["0.001", "0.1"]
    assert not main_program.sweep(grid=["lr=0.001,0.1"], retry=True)
    assert [flags["lr"] for flags in trained[2:]] == ["0.1"]


def test_the_best_run_for_each_value_of_a_flag_is_repeated(trained: list[dict[str, str]], capsys: Any) -> None:
    grid = ["optimizer=sgd lr=0.01,0.05", "optimizer=adam lr=0.002,0.001"]
    assert main_program.sweep(grid=grid, best_per="optimizer", repeat="seed=1,2", workers=1)
    numbers = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert numbers == ["1/4", "2/4", "3/4", "4/4"] * 2
    best = [("adam", "0.002"), ("sgd", "0.05")]
    expected = [(*cell, seed) for cell in best for seed in "12"]
    assert sorted((flags["optimizer"], flags["lr"], flags["seed"]) for flags in trained[4:]) == expected


def test_results_from_elsewhere_count_only_where_they_are_asked_for(
    trained: list[dict[str, str]], tmp_path: Path, capsys: Any
) -> None:
    texts = list_texts(resolve_config(RunConfig(lr=0.001)))
    results = {"best_epoch": 2, "best_val_acc": 81.0, "test_acc_at_best_val": 79.5, "seconds": 7.5}
    row = {"run": "elsewhere/version_0"} | texts | results
    write_table(tmp_path / "runs.csv", pd.DataFrame([row], columns=["run", *texts, *RESULTS]))
    assert main_program.sweep(grid=["lr=0.001,0.002"], reuse="runs.csv")
    assert [flags["lr"] for flags in trained] == ["0.002"]
    assert "lr=0.001  best epoch 2  val 81.00%  test 79.50%  from runs.csv" in capsys.readouterr().out
    assert main_program.sweep(grid=["lr=0.001,0.002"])
    assert [flags["lr"] for flags in trained] == ["0.002", "0.001"]


def test_a_search_stays_in_its_space(trained: list[dict[str, str]]) -> None:
    main_program.sweep(search=["optimizer=sgd,adam lr=0.001..0.05 width=1..2 tag=a..b"], trials=8)
    assert len({flags["lr"] for flags in trained}) == 8 and {flags["tag"] for flags in trained} == {"a..b"}
    for flags in trained:
        assert 0.001 <= float(flags["lr"]) <= 0.05 and flags["optimizer"] in ("sgd", "adam")
        assert flags["width"] in ("1", "2")


def test_a_sweep_that_is_busy_or_has_a_file_in_its_way_is_one_line(
    trained: list[dict[str, str]], tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "logs" / "sweep").mkdir(parents=True)
    (tmp_path / "file").touch()
    with FileLock(tmp_path / "logs" / "sweep" / "sweep.lock"):
        for folder, said in (("logs", "logs/sweep: another sweep.py is at it\n"), ("file", "file/sweep: ")):
            assert run_program(partial(main_program.sweep, grid=["lr=0.01"], log_dir=folder)) == 2  # type: ignore[arg-type]
            error = capsys.readouterr().err
            assert said in error and error.count("\n") == 1


def test_a_search_that_was_stopped_proposes_what_one_that_was_not_does(tmp_path: Path, capsys: Any) -> None:
    stopped, again, whole = (Untrained(tmp_path / name) for name in ("stopped", "stopped", "whole"))
    assert len(stopped.run(count=3)) == 3 == len(capsys.readouterr().out.splitlines())
    with (tmp_path / "stopped" / "tried" / "study.log").open("a") as file:
        file.write('{"op_code":5,"trial')  # as after a kill
    found = again.run()
    lines = capsys.readouterr().out.splitlines()  # a run that was stopped is shown when it is finished
    assert len(lines) == 8 and all("best epoch" in line for line in lines)
    rates = {key: attributes["chosen"]["lr"] for key, attributes in found.items()}
    assert rates == {key: attributes["chosen"]["lr"] for key, attributes in whole.run().items()}
    assert len(set(rates.values())) == 8


def test_a_sweep_on_a_file_system_without_locks_is_finished(tmp_path: Path, no_locks: None) -> None:
    assert len(Untrained(tmp_path).run(count=3)) == 3 and len(Untrained(tmp_path).run()) == 8


def test_workers_and_sweeps_with_other_grids_share_a_database(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    one, other = (Untrained(tmp_path, grid, storage) for grid in ("seed=0,1,2,3,4,5,6,7", "seed=2"))
    with open_study(other.sweep, other.planned, storage) as study:
        study.enqueue_trial({}, user_attrs={"key": "of the other", "assigned": {}, "space": {}})
        assert len(one.run(workers=4)) == 8
        assert sorted(values["seed"] for values in one.seen) == list("01234567")  # each once
        assert [trial.state.name for trial in study.get_trials()] == ["WAITING"]


@pytest.mark.parametrize(("new", "last"), [("", ""), ("\n\n", ""), ("\n", "garbage\n")])
def test_a_damaged_journal_is_a_line_and_its_advice_holds(tmp_path: Path, new: str, last: str) -> None:
    assert len(Untrained(tmp_path, "seed=0,1").run()) == 2
    journal = tmp_path / "tried" / "study.log"
    journal.write_text(journal.read_text().replace("\n", new, 1) + last)
    with pytest.raises(UsageError, match=r"^[^\n]*study\.log: damaged .*; delete it: [^\n]*$"):
        Untrained(tmp_path, "seed=0,1").run()
    journal.unlink()
    assert len(Untrained(tmp_path, "seed=0,1").run()) == 2


def test_what_ends_a_worker_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = plan(tmp_path)
    planned = sweep.expand_grid("seed=0,1,2")
    with open_study(sweep, planned, None) as study:
        engine = Engine(study, sweep, workers=2)

        def full(number: int, values: dict[str, str]) -> dict[str, Any]:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(engine, "_result", full)
        with pytest.raises(OSError, match="No space left"):
            engine.run(planned, retry=False)


def test_a_search_goes_on_after_values_that_contradict_each_other(tmp_path: Path) -> None:
    sweep = plan(tmp_path)
    (run,) = sweep.expand_search("network=lenet5,resnet width=1..4", 1)
    contradicted = pytest.raises(Failed, match="width 2: only lenet5 or lenet5-bn has one")
    with open_study(sweep, [run], None) as study, contradicted:
        Engine(study, sweep, workers=1)._result(0, run.assigned | {"network": "resnet", "width": "2"})


def test_what_was_chosen_on_the_test_set_is_not_called_validation() -> None:
    attributes = {"assigned": {"lr": "0.1"}, "result": RESULT | {"select_on": "test", "val_acc": 0.78}}
    line = describe_trial(create_trial(value=0.78, user_attrs=attributes))
    assert line == "lr=0.1  best epoch 2  test 78.00%  10 s"


@pytest.mark.parametrize("url", ["postgresql+psycopg://nobody@127.0.0.1:1/none", "sqlite:////none/none.db", "no URL"])
def test_a_database_that_cannot_be_reached_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^storage: [^\n]+$"):
        open_database(url)
    monkeypatch.setattr("core.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"PostgreSQL needs psycopg: pip install -r requirements-extra\.txt"):
        open_database("postgresql+psycopg://nobody@127.0.0.1:1/none")
