"""Sweeps without their runs: what is planned, what a search proposes, what counts as done."""

import errno
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from core.errors import UsageError
from experiments.grid import Sweep
from experiments.study import Engine, Failed, describe_trial, open_database, open_study, suggest_value

RESULT: dict[str, Any] = {"best_epoch": 2, "val_acc": 0.8, "test_acc": 0.78, "seconds": 9.5}


def plan(folder: Path) -> Sweep:
    return Sweep(None, "", "tried", *[folder] * 3)


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


def test_a_search_that_was_stopped_proposes_what_one_that_was_not_does(tmp_path: Path, capsys: Any) -> None:
    stopped, again, whole = (Untrained(tmp_path / name) for name in ("stopped", "stopped", "whole"))
    assert len(stopped.run(count=3)) == 3 == len(capsys.readouterr().out.splitlines())
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


def test_half_a_line_at_the_end_of_the_journal_is_dropped(tmp_path: Path) -> None:
    assert len(Untrained(tmp_path).run(count=3)) == 3
    with (tmp_path / "tried" / "study.log").open("a") as file:
        file.write('{"op_code":5,"trial')
    assert len(Untrained(tmp_path).run()) == 8


@pytest.mark.parametrize("new", ["", "\n\n"])
def test_a_damaged_journal_is_a_line_and_its_advice_holds(tmp_path: Path, new: str) -> None:
    assert len(Untrained(tmp_path, "seed=0,1").run()) == 2
    journal = tmp_path / "tried" / "study.log"
    journal.write_text(journal.read_text().replace("\n", new, 1))
    with pytest.raises(UsageError, match=r"study\.log: damaged .*finished runs are found in their folders") as raised:
        Untrained(tmp_path, "seed=0,1").run()
    assert "\n" not in str(raised.value)
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


def test_whole_numbers_are_drawn_where_a_flag_takes_them() -> None:
    trial: Any = optuna.create_study().ask()
    drawn = {flag: suggest_value(trial, flag, text) for flag, text in (("threads", "1..4"), ("val_size", "1000..5000"))}
    assert drawn["threads"] in {"1", "2", "3", "4"} and int(drawn["val_size"]) % 10 == 0


def test_a_path_with_two_dots_is_no_range(tmp_path: Path) -> None:
    (run,) = plan(tmp_path).expand_search("tag=a..b lr=0.001..0.1", 1)
    assert (run.assigned, run.space) == ({"tag": "a..b"}, {"lr": "0.001..0.1"})


def test_what_was_chosen_on_the_test_set_is_not_called_validation() -> None:
    attributes = {"assigned": {"lr": "0.1"}, "result": RESULT | {"select_on": "test"}}
    line = describe_trial(create_trial(value=0.8, user_attrs=attributes))
    assert line == "lr=0.1  best epoch 2  test 78.00%, chosen on it  10 s"


@pytest.mark.parametrize("url", ["postgresql+psycopg://nobody@127.0.0.1:1/none", "sqlite:////none/none.db", "no URL"])
def test_a_database_that_cannot_be_reached_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^storage: [^\n]+$"):
        open_database(url)
    monkeypatch.setattr("core.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"PostgreSQL needs psycopg: pip install -r requirements-extra\.txt"):
        open_database("postgresql+psycopg://nobody@127.0.0.1:1/none")
