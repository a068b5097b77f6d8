"""The texts that name the runs of a sweep."""

from pathlib import Path

import pytest

from core.errors import UsageError
from experiments.grid import Sweep


@pytest.fixture
def plan(tmp_path: Path) -> Sweep:
    return Sweep(None, "", "tried", tmp_path / "data", tmp_path / "logs", tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr=0.1 lr=0.2", "lr=0.2: lr is there twice; several values are lr=0.1,0.2"),
        ("learning_rate=0.1", r"learning_rate=0.1: no flag of train.py that a sweep can set; did you mean lr\?"),
        ("patience=3", "patience=3: no flag .*: there is no early stopping"),
        ("lr", "lr: must be flag=value"),
    ],
)
def test_a_grid_that_is_none_is_one_line(plan: Sweep, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan.expand_grid(text)


def test_a_path_with_two_dots_is_no_range(plan: Sweep, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tag=a\.\.b: has neither a range"):
        plan.expand_search("tag=a..b", 3)
    (cell,) = plan.expand_search("tag=a..b lr=0.001..0.1", 1)
    assert (cell.assigned, cell.space) == ({"tag": "a..b"}, {"lr": "0.001..0.1"})
