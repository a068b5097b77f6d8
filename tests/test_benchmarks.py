"""The benchmarks run and write their pages; what they measure is not judged here."""

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmarks import corruption, report_pipeline, throughput, time_to_accuracy
from cifar10.config import Preprocessing
from cifar_datamodule import CIFAR10DataModule
from conftest import evaluated
from core.errors import UsageError
from lenet_module import LeNet5


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("val_size: 0\n")
    return path


def rows(page: Path) -> dict[str, list[str]]:
    """The lines of a page's tables: cells by the first."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.read_text().splitlines() if "|" in line]
    return {name: rest for name, *rest in cells if set(name) - set(":-") or not name}  # without the rulers


@pytest.mark.slow
def test_throughput_writes_every_figure_and_ratio(data_dir: Path, tmp_path: Path) -> None:
    page = tmp_path / "results" / "throughput.md"
    throughput.main(["--tiny", "--data_dir", str(data_dir), "--out", str(page)])
    assert "`python -m benchmarks.throughput --tiny " in page.read_text()
    written = rows(page)
    for way in [
        *(f"{way}, batch {size}, {workers} workers" for way in "AB" for size in (64, 128) for workers in (0, 2)),
        *(f"C, batch {size}, {part}" for size in (64, 128) for part in ("first epoch", "steady")),
        *(f"D, batch {batch_size}{part}" for batch_size in (64, 128) for part in ("", ", training alone")),
        "E",
        *(f"start, {part}, s" for part in ("in all", "bare import")),
        *(f"peak memory of {way}, GB" for way in ("A", "B", "C", "bare import")),
    ]:
        median = float(written[way][0].replace(",", ""))
        assert median > 0
    for way, (ours, theirs) in itertools.product("AB", ((64, 64), (128, 128), (128, 64))):
        assert sum(name.startswith(f"C, batch {ours}, steady / {way}, batch {theirs}, ") for name in written) == 1


@pytest.mark.slow
def test_time_to_accuracy_tries_more_epochs_until_the_last(data_dir: Path, tmp_path: Path, recipe: Path) -> None:
    page = tmp_path / "results" / "page.md"
    common = ["--tiny", "--data_dir", str(data_dir), "--recipe", str(recipe), "--out", str(page)]
    time_to_accuracy.main([*common, "--to", "2"])
    assert "73.08%: not reached" in page.read_text()
    assert set(rows(page)) == {"epochs", "1", "2"}
    runs = time_to_accuracy.read_runs(page.with_suffix(".csv"))
    assert [(run.epochs, run.seed) for run in runs] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(0 <= run.test_acc <= 1 and run.ratio > 0 for run in runs)


def test_the_bare_loop_gets_the_images_of_the_run_that_it_is_compared_with(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def setup(datamodule: CIFAR10DataModule, stage: str | None = None) -> None:
        seen.append(datamodule.preprocessing)
        original(datamodule, stage)

    original = CIFAR10DataModule.setup
    monkeypatch.setattr(CIFAR10DataModule, "setup", setup)
    throughput.measure_ours(data_dir, throughput.TINY, batch_size=64)
    by_run = set(seen)
    throughput.measure_bare_loop(data_dir, 64, throughput.TINY, "bf16-mixed")
    assert by_run == {seen[-1]} == {Preprocessing()}


def test_times_of_another_kind_are_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "page.csv"
    path.write_text("epochs,seed,test_acc,seconds,report_images_per_second\n4,0,0.74,30,4000\n")
    with pytest.raises(UsageError, match="its columns are not epochs, seed, test_acc, command_seconds"):
        time_to_accuracy.main(["--out", str(path.with_suffix(".md"))])


def test_time_to_accuracy_goes_on_where_it_stood_and_stops_when_it_is_there(tmp_path: Path) -> None:
    page, runs = tmp_path / "page.md", []
    for epochs, accuracy in ((1, 0.70), (2, 0.74)):
        for seed in range(5):
            runs.append(time_to_accuracy.Run(epochs, seed, accuracy + 0.001 * seed, 60.0, 1000.0))
    pd.DataFrame(runs).to_csv(page.with_suffix(".csv"), index=False)
    before = page.with_suffix(".csv").read_text()
    time_to_accuracy.main(["--out", str(page)])
    assert page.with_suffix(".csv").read_text() == before
    assert "73.08%: 2\n" in page.read_text()
    assert rows(page)["2"] == ["74.20", "74.00", "74.40", "60", "50 (50 to 50)"]


@pytest.mark.parametrize("benchmark", [throughput, time_to_accuracy])
def test_a_tiny_run_does_not_overwrite_results(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        benchmark.main(["--tiny"])
    assert not list(tmp_path.iterdir())


def test_the_networks_have_the_reports_size_and_work() -> None:
    assert sum(parameter.numel() for parameter in report_pipeline.network().parameters()) == 548_878
    forward = 2 * (28 * 28 * 18 * 75 + 10 * 10 * 48 * 450 + 1200 * 360 + 360 * 252 + 252 * 10)
    # Backward costs twice as much, save that images need no gradient.
    assert throughput.count_flops() == 3 * forward - 2 * 28 * 28 * 18 * 75


def test_the_report_and_this_project_compute_the_same() -> None:
    ours, theirs = LeNet5(), report_pipeline.network()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(theirs(images), ours(images))


def test_each_run_of_a_sweep_is_evaluated_once_on_each_corruption(run: Any, data_dir: Path, tmp_path: Path) -> None:
    results = [run(seed=seed) for seed in (0, 1)]
    line = [str(tmp_path / "logs"), "--data_dir", str(data_dir), "--out", str(tmp_path / "out")]
    corruption.main(line)
    table = pd.read_csv(tmp_path / "out" / "corrupted.csv")
    clean = table[table["corruption"] == "clean"]
    assert [f"{path.parent.name}/{path.name}" for path in map(Path, (r.log_dir for r in results))] == list(clean["run"])
    assert clean["accuracy"].tolist() == pytest.approx([100 * result.val_acc for result in results])
    noise = table[(table["corruption"] == "gaussian") & (table["severity"] == 5)]["accuracy"].iloc[0]
    found = evaluated(results[0].checkpoint, data_dir, on="val", corrupt="gaussian", severity=5)
    assert noise == pytest.approx(100 * found["val/acc"]) and len(table) == 2 * (2 + 4 * 5)
    results[0].checkpoint.unlink()
    corruption.main(line)
    assert len(pd.read_csv(tmp_path / "out" / "corrupted.csv")) == len(table)
