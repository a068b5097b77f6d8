"""Evaluate each run of a sweep on clean and corrupted images, as `evaluate.py --corrupt all` does.

    python -m benchmarks.corruption logs/corruption

Writes results/corruption/corrupted.csv: a row for each run, corruption and severity, with the accuracy in percent on
the run's validation images, or on the test set with `--on test`. Runs that are in the file are not evaluated again.
`python report.py logs/corruption` then has a table and a picture of it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # a notebook's backend, which may not be installed here

import pandas as pd

from core.cli import run_program
from experiments.tables import CORRUPTED, find_runs, read_csv, write_csv
from models.checkpoint import load_checkpoint
from models.classifier import Classifier
from training.evaluation import CLEAN, SPLITS, evaluate_corruptions, load_split


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="log folder of the sweep")
    parser.add_argument("--on", choices=list(SPLITS), default="val", help="images to evaluate on")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of CIFAR-10")
    parser.add_argument("--out", type=Path, help="folder of the table; the default is results/ and the sweep's name")
    options = parser.parse_args(arguments)
    path = (options.out or Path("results", options.folder.resolve().name)) / CORRUPTED
    table = read_csv(path)
    for name, run in find_runs([options.folder]).items():
        known = len(table) and (table[["run", "on"]] == [name, options.on]).all(axis=1).any()
        if known or not run.result or not run.result.checkpoint or (options.on == "val" and not run.config.val_size):
            continue
        checkpoint = load_checkpoint(run.result.checkpoint)
        images = load_split(checkpoint, replace(checkpoint.data, data_dir=options.data_dir), options.on)
        found = evaluate_corruptions(Classifier(checkpoint), images, checkpoint.preprocessing)
        rows = [(name, options.on, *kind, round(100 * value, 2)) for kind, value in found.items()]
        columns = ["run", "on", "corruption", "severity", "accuracy"]
        new = pd.DataFrame(rows, columns=columns).astype({"severity": "Int64"})
        table = pd.concat([table, new]) if len(table) else new
        path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(path, table)
        print(f"{name}: {found[CLEAN]:.2%} of the clean images", flush=True)
    if table.empty:
        parser.error(f"{options.folder}: no finished run with such images")


if __name__ == "__main__":
    sys.exit(run_program(lambda: main(sys.argv[1:])))
