"""What the sweep `preprocessing` does not show: the cost of each method, its pictures, and corrupted test images.

    python -m studies.preprocessing

Writes into results/preprocessing/: reference.csv, the seconds that each method takes for 60,000 images; methods.png;
corrupted.csv, the test accuracy of the sweep's Adam runs on corrupted images, a row an evaluation; corrupted.md, their
table. Runs are read from logs/preprocessing. Evaluations in corrupted.csv are not done again.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import figures
from benchmarks.page import header, table
from cifar10 import records
from cifar10.download import prepare
from cifar10.filters import CORRUPT, DENOISE, NORMALIZE, SEGMENT
from cifar10.preprocessing import WHITENING, Preprocessing, fit_whitening, preprocess, whiten
from cifar_datamodule import CIFAR10DataModule
from core.cli import exit_status
from experiments.runs import Run, read_runs
from experiments.tables import save, write
from models.checkpoint import load_checkpoint
from training import evaluation

SEVERITIES = (1, 3, 5)
METHODS: list[dict[str, Any]] = [
    {"denoise": denoise, "segment": segment, "normalize": normalize}
    for denoise in DENOISE
    for segment in SEGMENT
    for normalize in NORMALIZE
    if (denoise != "none") + (segment != "none") + (normalize != "dataset") == 1 and normalize != "none"
]  # one alone; without normalisation there is nothing to do


class Evaluation(NamedTuple):
    """A line of corrupted.csv: a network trained with one way of denoising, tested with another on corrupted images."""

    seed: int
    trained_with: str
    denoise: str
    corrupt: str
    severity: int
    test_acc: float  # percent


def name(method: dict[str, Any]) -> str:
    return next(value for value in method.values() if value not in ("none", "dataset"))


def measure(data_dir: Path, rounds: int) -> Iterator[dict[str, object]]:
    """Seconds that each method takes for all 60,000 images, the fastest of some rounds; the fit of zca included."""
    parts = [records.load(data_dir / records.FOLDER, train)[0] for train in (True, False)]
    images = np.concatenate([part.transpose(0, 2, 3, 1) for part in parts]).transpose(0, 3, 1, 2)
    for method in METHODS:
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            if method["normalize"] in WHITENING:
                whiten(images, fit_whitening(images, np.arange(45_000), method=method["normalize"]))
            else:
                preprocess(images, Preprocessing(**method))
            seconds.append(time.perf_counter() - start)
        print(f"{name(method)}: {min(seconds):.1f} s", flush=True)
        yield method | {"seconds to preprocess 60,000 images": round(min(seconds), 1)}


def draw(data_dir: Path) -> Figure:
    """A picture of an image of each class before and after each method."""
    rows: dict[str, np.ndarray] = {}
    for method in METHODS:
        datamodule = CIFAR10DataModule(data_dir=data_dir, random_corruption=0, **method)
        datamodule.setup()
        stages = datamodule.examples()
        rows |= {"as it is": stages["as it is"], name(method): stages["preprocessed"]}
    return figures.before_and_after(rows, records.CLASS_NAMES)


def wanted(run: Run) -> Iterator[tuple[str, str, int]]:
    """The (denoise, corrupt, severity) that a run is to be tested with."""
    if run.result is None or run.config.optimizer != "adam":
        return
    if run.config.segment != "none" or run.config.normalize != "dataset":
        return
    trained_with = run.config.denoise
    for denoise in DENOISE if trained_with == "none" else (trained_with,):
        yield denoise, "none", 0
        for corrupt in CORRUPT:
            if corrupt != "none":
                yield from ((denoise, corrupt, severity) for severity in SEVERITIES)


def evaluate(runs: Sequence[Run], root: Path, data_dir: Path, path: Path) -> None:
    """Test the runs as `wanted`, and append each evaluation to a CSV file at once."""
    done: set[tuple[str, ...]] = set()
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            done = {tuple(line[:-1]) for line in csv.reader(file)}
    for run in runs:
        for denoise, corrupt, severity in wanted(run):
            key = (run.config.seed, run.config.denoise, denoise, corrupt, severity)
            if tuple(map(str, key)) in done:
                continue
            assert run.result
            asked: dict[str, Any] = {"corrupt": corrupt} | ({"severity": severity} if severity else {})
            checkpoint = load_checkpoint(root / run.result["checkpoint"])
            found = evaluation.evaluate(checkpoint, data_dir, denoise=denoise, **asked)
            with path.open("a", newline="", encoding="utf-8") as file:
                row = Evaluation(*key, round(found["test/acc"] * 100, 2))
                csv.writer(file).writerows([row] if file.tell() else [Evaluation._fields, row])


def corrupted_table(path: Path) -> str:
    """Accuracy of the networks trained without denoising, and what denoising adds to it, paired by seed."""
    keys = ["corrupt", "severity", "trained_with", "denoise", "seed"]
    cells = pd.read_csv(path).set_index(keys).sort_index()["test_acc"]
    methods = [method for method in DENOISE if method != "none"]
    ways = [("none", method) for method in methods] + [(method, method) for method in methods]  # trained, tested with
    heads = ["test images, severity", "no denoising, %"]
    heads += [f"{tested}, in {'the test only' if trained == 'none' else 'training too'}" for trained, tested in ways]
    rows = []
    for corrupt in CORRUPT:
        for severity in SEVERITIES if corrupt != "none" else (0,):
            part = cells.loc[corrupt, severity]
            plain = part.loc["none", "none"]
            row = [f"{corrupt} {severity}" if severity else "clean", f"{plain.mean():.2f} ± {plain.std():.2f}"]
            for way in ways:
                gain = part.loc[way] - plain
                row.append(f"{gain.mean():+.2f} ± {gain.std():.2f}")
            rows.append(row)
    return table(heads, rows)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of CIFAR-10")
    parser.add_argument("--root", type=Path, default=Path(), help="the folder from which the sweep was run")
    parser.add_argument("--rounds", type=int, default=1, help="times that each method is timed; 0 leaves it out")
    parser.add_argument("--out", type=Path, default=Path("results/preprocessing"))
    options = parser.parse_args(arguments)
    prepare(options.data_dir)

    options.out.mkdir(parents=True, exist_ok=True)
    if options.rounds:
        costs = pd.DataFrame(measure(options.data_dir, options.rounds))
        write(options.out / "reference.csv", costs.to_csv(index=False, lineterminator="\n"))
    save(draw(options.data_dir), options.out / "methods.png", dpi=80)
    runs = read_runs(options.root / "logs/preprocessing")
    evaluate(runs, options.root, options.data_dir, options.out / "corrupted.csv")
    text = header("Denoising corrupted test images", "studies.preprocessing", arguments, options.rounds) + "\n\n"
    text += "Test accuracy of networks trained on clean images, mean ± standard deviation over seeds; then what\n"
    text += "denoising adds, in points, paired by seed. Severities are those of CIFAR-10-C.\n\n"
    text += corrupted_table(options.out / "corrupted.csv") + "\n"
    write(options.out / "corrupted.md", text)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
