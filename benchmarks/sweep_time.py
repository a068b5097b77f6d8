"""How long the sweep of the report's nine cells takes on this machine, and how long the report's way would take.

    python benchmarks/sweep_time.py

For each batch size in turn, round after round: the rate of the report's way (report_way.py) with its better number of
workers, and the rate of as many runs of train.py, of one thread each, as there are cores, as sweep.py has them. The
report's way is not charged for its tests after each epoch; ours includes them.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project

import train
from benchmarks import report_way
from benchmarks.page import header, number, spread, table
from benchmarks.processes import plain_process
from benchmarks.throughput import FULL, TINY, WORKERS

OUT = Path("results/coursework/time.md")
RECIPE = Path("recipes/coursework.yaml")
BATCH_SIZES = (128, 64, 32)
EPOCHS = 90 + 90 + 30  # with each: SGD at two learning rates, and Adam


def one_run(data_dir: Path, batch_size: int, seed: int, tiny: bool) -> float:
    """Training images/s over the whole time of an epoch of the report's recipe, with one thread."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8")) | {"epochs": 1, "batch_size": batch_size}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        result = train.train(
            **recipe,
            seed=seed,
            threads=1,
            pictures=False,
            data_dir=data_dir,
            log_dir=Path(folder, "logs"),
            checkpoint_dir=Path(folder, "checkpoints"),
            fast_dev_run=tiny,
        )
    return result["images_per_second"]


def sweep(data_dir: Path, batch_size: int, tiny: bool) -> float:
    """Images/s of as many runs at once as there are cores, all together."""
    count = os.cpu_count() or 1
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        runs = [pool.submit(one_run, data_dir, batch_size, seed, tiny) for seed in range(count)]
        return sum(run.result() for run in runs)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of CIFAR-10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="next to nothing, to see whether all works")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    if options.tiny and options.out == OUT:
        parser.error("--tiny needs another --out: its figures mean nothing")

    images = (TINY if options.tiny else FULL).images
    theirs: dict[int, list[float]] = {batch_size: [] for batch_size in BATCH_SIZES}
    ours: dict[int, list[float]] = {batch_size: [] for batch_size in BATCH_SIZES}
    with plain_process(reuse=options.tiny) as plain:
        for _ in range(options.rounds):
            for batch_size in BATCH_SIZES:
                rates = [
                    plain.submit(report_way.images_per_second, options.data_dir, batch_size, workers, images).result()
                    for workers in WORKERS
                ]
                theirs[batch_size].append(max(rates))
                ours[batch_size].append(sweep(options.data_dir, batch_size, options.tiny))
                print(f"{batch_size}: {number(theirs[batch_size][-1])}, {number(ours[batch_size][-1])}", flush=True)

    def minutes(rates: dict[int, list[float]], turn: int) -> float:
        return sum(EPOCHS * 50_000 / rates[size][turn] for size in BATCH_SIZES) / 60

    totals = [(minutes(theirs, turn), minutes(ours, turn)) for turn in range(options.rounds)]
    ratio, extent = spread([our / their for their, our in totals])
    rows = []
    for size in BATCH_SIZES:
        shares = [our / their for their, our in zip(theirs[size], ours[size], strict=True)]
        rows.append([str(size), *(number(median(rates[size])) for rates in (theirs, ours)), number(median(shares))])
    text = header("Time of the nine cells", "sweep_time.py", arguments, options.rounds) + "\n\n"
    text += table(["batch size", "the report's way, images/s", "the sweep, images/s", "ratio"], rows)
    text += f"\n\nAll 630 epochs: {number(median(our for _, our in totals))} minutes instead of "
    text += f"{number(median(their for their, _ in totals))}, {ratio} of the time ({extent}; medians of rounds).\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
