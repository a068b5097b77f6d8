"""How long this project trains to the report's best accuracy, and how long the report's recipe takes here for it.

    python -m benchmarks.time_to_accuracy

Tries numbers of epochs with the recipe, upwards, five seeds each, until the mean final test accuracy is the report's
best. The time is that of the whole command, from its start to its end: imports, data, training, the test. Beside each
run the rate of the report's pipeline (report_pipeline.py) is measured over some thousand images. Its recipe needs 60
epochs of 50,000, and its start and its tests are not counted. Each finished run is appended to a CSV file beside the
page: a benchmark that was killed goes on where it stood, so delete that file to measure anew.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

os.environ["MPLBACKEND"] = "agg"  # a notebook's backend, which may not be installed here

import pandas

from benchmarks import report_pipeline
from benchmarks.page import format_number, summarize, write_header
from benchmarks.processes import call_in_new_process, time_command
from benchmarks.throughput import FULL, TINY, WORKERS
from core.cli import run_program
from core.errors import UsageError
from core.markdown import markdown_table

OUT = Path("results/time_to_accuracy.md")
TARGET = 0.7308  # the report's best test accuracy: SGD, batch 64, learning rate 0.005
REPORT_IMAGES = 60 * 50_000  # of the first epoch in which the report has it


class Run(NamedTuple):
    """A line of the CSV file: accuracy is a fraction, seconds are of the whole command, the report's rate is that of
    its training at that time."""

    epochs: int
    seed: int
    test_acc: float
    command_seconds: float
    report_images_per_second: float

    @property
    def ratio(self) -> float:
        """The report's time by ours."""
        return REPORT_IMAGES / self.report_images_per_second / self.command_seconds


def read_runs(path: Path) -> list[Run]:
    """What earlier runs wrote; UsageError if it was another version that measured something else."""
    if not path.exists():
        return []
    table = pandas.read_csv(path)
    if list(table) != list(Run._fields):
        raise UsageError(f"{path}: its columns are not {', '.join(Run._fields)}; delete it to measure anew")
    return [Run(*row) for row in table.itertuples(index=False)]


def measure(options: argparse.Namespace, epochs: int, seed: int, images: int) -> Run:
    """One round: the rate of the report's pipeline over some `images`, and a run of the recipe.

    The report's pipeline has the better number of workers, and a new process for each.
    """
    task = report_pipeline.measure_training
    rates = [call_in_new_process(task, options.data_dir, 64, workers, images) for workers in WORKERS]
    flags = ["--config", str(options.recipe.absolute()), "--epochs", str(epochs), "--seed", str(seed)]
    seconds, accuracy = time_command(options.data_dir, flags)
    return Run(epochs, seed, round(accuracy, 4), round(seconds, 2), round(max(rates), 1))  # of 10,000 images: exact


def make_row(runs: Sequence[Run]) -> list[str]:
    """The page's line on the runs of one number of epochs."""
    accuracies = [100 * run.test_acc for run in runs]
    ratio, extent = summarize([run.ratio for run in runs])
    figures = [f"{figure:.2f}" for figure in (mean(accuracies), min(accuracies), max(accuracies))]
    seconds = summarize([run.command_seconds for run in runs])[0]
    return [str(runs[0].epochs), *figures, seconds, f"{ratio} ({extent})"]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of CIFAR-10")
    parser.add_argument("--to", type=int, default=6, dest="last", help="largest number of epochs to try")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/sprint.yaml"))
    parser.add_argument("--tiny", action="store_true", help="two seeds and next to nothing, to see whether all works")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    if options.tiny and options.out == OUT:
        parser.error("--tiny needs another --out: its figures mean nothing")

    images, seeds = (TINY.images, range(2)) if options.tiny else (FULL.images, range(5))
    log = options.out.with_suffix(".csv")
    log.parent.mkdir(parents=True, exist_ok=True)
    done = {(run.epochs, run.seed): run for run in read_runs(log)}
    rows, reached = [], "not reached"
    for epochs in range(1, options.last + 1):
        for seed in seeds:
            if (epochs, seed) not in done:
                done[epochs, seed] = run = measure(options, epochs, seed, images)
                pandas.DataFrame([run]).to_csv(log, mode="a", header=not log.exists(), index=False)
                found = f"{run.test_acc:.2%} in {format_number(run.command_seconds)} s"
                print(f"{epochs} epochs, seed {seed}: {found}", flush=True)
        runs = [done[epochs, seed] for seed in seeds]
        rows.append(make_row(runs))
        if mean(run.test_acc for run in runs) >= TARGET:
            reached = str(epochs)
            break
    accuracy = [f"{which} test accuracy, %" for which in ("mean", "lowest", "highest")]
    text = write_header("Time to the report's best accuracy", "benchmarks.time_to_accuracy", arguments, len(seeds))
    text += f"\n- smallest number of epochs with a mean test accuracy of {TARGET:.2%}: {reached}\n\n"
    heads = ["epochs", *accuracy, "median time of the command, s", "training time of the report's recipe / this time"]
    text += markdown_table(heads, rows) + "\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(run_program(lambda: main(sys.argv[1:])))
