import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import ROOT


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOUR_EPOCHS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    weights = tmp_path / "checkpoints" / "lenet5-cifar10.ckpt"
    weights.parent.mkdir()
    shutil.copy(ROOT / "checkpoints" / weights.name, weights)
    tour = nbformat.read(ROOT / "tour.ipynb", as_version=4)
    NotebookClient(tour, timeout=1200, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [cell.outputs for cell in tour.cells if cell.cell_type == "code"][2:]
    assert all(outputs)
    assert "test accuracy" in outputs[4][-1].text
    assert "cat" in outputs[-1][-1].text  # the first test image is one


def test_the_tour_is_kept_with_what_it_shows() -> None:
    tour = nbformat.read(ROOT / "tour.ipynb", as_version=4)
    assert all(cell.outputs for cell in tour.cells[3:] if cell.cell_type == "code")
    assert (ROOT / "tour.ipynb").stat().st_size <= 300_000
