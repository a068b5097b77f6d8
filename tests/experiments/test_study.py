"""The engine of sweeps, without its runs: what a search proposes, what counts as done."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from core.errors import UsageError
from experiments import grid
from experiments.study import Engine, Failed, open_study, suggest_value

RESULT: dict[str, Any] = {"best_epoch": 2, "test_acc": 0.78, "seconds": 9.5}


class Search:
    """A search of eight rates in a folder of its own, in which no run is trained."""

    def __init__(self, folder: Path) -> None:
        self.sweep = grid.Sweep(None, "", "tried", *[folder] * 3)
        self.planned = self.sweep.expand_search("lr=0.001..0.1", 8)

    def run(self, monkeypatch: pytest.MonkeyPatch, count: int = 8) -> dict[str, str]:
        """The rate of each finished run, after a process that is stopped when it has finished `count` runs."""
        done = 0

        def result(engine: Engine, number: int, values: dict[str, str]) -> dict[str, Any]:
            nonlocal done
            if done == count:
                engine.stopping.set()
                raise Failed("stopped")
            done += 1
            return RESULT | {"val_acc": float(values["lr"])}

        monkeypatch.setattr(Engine, "_result", result)
        with open_study(self.sweep, self.planned, None) as study:
            engine = Engine(study, self.sweep, workers=1)
            engine.run(self.planned, retry=False)
            return {key: each.assigned["lr"] for key, each in engine.outcomes(self.planned).items() if each.result}


def test_a_search_that_was_stopped_proposes_what_one_that_was_not_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = Search(tmp_path / "whole"), Search(tmp_path / "stopped")
    assert len(stopped.run(monkeypatch, count=3)) == 3
    found = stopped.run(monkeypatch)
    assert found == whole.run(monkeypatch) and len(set(found.values())) == 8


def test_a_sweep_on_a_file_system_without_locks_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_locks: None
) -> None:
    search = Search(tmp_path)
    assert len(search.run(monkeypatch, count=3)) == 3 and len(search.run(monkeypatch)) == 8


def test_a_cell_that_was_stopped_is_shown_when_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = Search(tmp_path)
    search.run(monkeypatch, count=3)
    assert len(capsys.readouterr().out.splitlines()) == 3
    search.run(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all("best epoch" in line for line in lines)


def test_a_result_from_elsewhere_counts_only_in_the_sweep_that_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = grid.Sweep(None, "", "tried", *[tmp_path] * 3)
    planned = sweep.expand_grid("seed=0")
    monkeypatch.setattr(Engine, "_result", lambda *arguments: RESULT | {"val_acc": 0.8})
    for reused in (True, False):
        sweep.reused = {planned[0].key: RESULT | {"reused": "a.csv", "val_acc": 0.9}} if reused else {}
        with open_study(sweep, planned, None) as study:
            engine = Engine(study, sweep, workers=1)
            engine.run(planned, retry=False)
            (outcome,) = engine.outcomes(planned).values()
            assert outcome.result and outcome.result["val_acc"] == (0.9 if reused else 0.8)


def finish(folder: Path, grid_text: str, storage: str | None, seen: list[str]) -> list[str]:
    """The lines of a sweep without runs, in a folder of its own; `seen` gets the seeds that were run."""
    sweep = grid.Sweep(None, "", "tried", *[folder] * 3)
    planned = sweep.expand_grid(grid_text)
    with open_study(sweep, planned, storage) as study:
        engine = Engine(study, sweep, workers=1)
        engine._result = lambda number, values: seen.append(values["seed"]) or RESULT | {"val_acc": 0.8}  # type: ignore
        engine.run(planned, retry=False)
        return sorted(outcome.assigned["seed"] for outcome in engine.outcomes(planned).values() if outcome.result)


def test_sweeps_with_other_grids_share_a_database(tmp_path: Path) -> None:
    storage, seen = f"sqlite:///{tmp_path / 'shared.db'}", list[str]()
    one, other = grid.Sweep(None, "", "tried", *[tmp_path] * 3), grid.Sweep(None, "", "tried", *[tmp_path] * 3)
    with (
        open_study(one, one.expand_grid("seed=0,1"), storage) as study,
        open_study(other, other.expand_grid("seed=2"), storage) as second,
    ):
        second.enqueue_trial({}, user_attrs={"key": "of the other", "assigned": {}, "space": {}})
        engine = Engine(study, one, workers=1)
        engine._result = lambda number, values: RESULT | {"val_acc": 0.8}  # type: ignore
        engine.run(one.expand_grid("seed=0,1"), retry=False)
        assert all(outcome.result for outcome in engine.outcomes(one.expand_grid("seed=0,1")).values())
        assert [trial.state.name for trial in second.get_trials()] == ["WAITING"]
    # What another machine has finished with a smaller grid is not run again.
    assert finish(tmp_path / "elsewhere", "seed=0,1,2", storage, seen) == ["0", "1", "2"] and seen == ["2"]


@pytest.mark.parametrize("damage", [lambda text: text.replace("\n", "", 1), lambda text: text.replace("\n", "\n\n", 1)])
def test_a_damaged_journal_is_a_line_and_its_advice_holds(tmp_path: Path, damage: Any) -> None:
    assert finish(tmp_path, "seed=0,1", None, []) == ["0", "1"]
    journal = tmp_path / "tried" / "study.log"
    journal.write_text(damage(journal.read_text()))
    with pytest.raises(UsageError, match=r"study\.log: damaged .*finished runs are found in their folders") as raised:
        finish(tmp_path, "seed=0,1", None, [])
    assert "\n" not in str(raised.value)
    journal.unlink()
    assert finish(tmp_path, "seed=0,1", None, []) == ["0", "1"]


def test_a_search_goes_on_after_values_that_contradict_each_other(tmp_path: Path) -> None:
    sweep = grid.Sweep(None, "", "tried", *[tmp_path] * 3)
    (run,) = sweep.expand_search("network=lenet5,resnet width=1..4", 1)
    with open_study(sweep, [run], None) as study:
        engine = Engine(study, sweep, workers=1)
        with pytest.raises(Failed, match="width 2: only lenet5 or lenet5-bn has one"):
            engine._result(0, run.assigned | {"network": "resnet", "width": "2"})


def test_whole_numbers_are_drawn_where_a_flag_takes_them() -> None:
    trial: Any = optuna.create_study().ask()
    drawn = {flag: suggest_value(trial, flag, text) for flag, text in (("threads", "1..4"), ("val_size", "1000..5000"))}
    assert drawn["threads"] in {"1", "2", "3", "4"} and int(drawn["val_size"]) % 10 == 0
