"""How long the sweep of the report's nine cells takes on this machine, and how long the report's pipeline would take.

    python -m benchmarks.sweep_time

For each batch size in turn, round after round: the seconds of an epoch, its test included, in the report's pipeline
(report_way.py, with its better number of workers), from its rates over some images; and the seconds of an epoch of as
many runs of train.py, of one thread each, as there are cores, as sweep.py has them, divided by their number.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import yaml

from benchmarks import report_way
from benchmarks.page import header, number, spread, table
from benchmarks.processes import plain_process
from benchmarks.throughput import FULL, TINY, WORKERS
from core.cores import cores
from training.run import train

OUT = Path("results/coursework/time.md")
RECIPE = Path("recipes/coursework.yaml")
BATCH_SIZES = (128, 64, 32)
EPOCHS = 90 + 90 + 30  # with each: SGD at two learning rates, and Adam


def theirs(data_dir: Path, batch_size: int, images: int, plain: Executor) -> float:
    """Seconds of an epoch in the report's pipeline."""
    seconds = []
    for workers in WORKERS:
        arguments = (data_dir, batch_size, workers, images)
        rates = [
            plain.submit(measure, *arguments).result()
            for measure in (report_way.images_per_second, report_way.test_images_per_second)
        ]
        seconds.append(50_000 / rates[0] + 10_000 / rates[1])
    return min(seconds)


def one_run(data_dir: Path, batch_size: int, seed: int, tiny: bool) -> float:
    """Training images/s over the whole time of an epoch of the report's recipe, its test included, with one thread."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8")) | {"epochs": 1, "batch_size": batch_size}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        result = train(
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


def ours(data_dir: Path, batch_size: int, tiny: bool) -> float:
    """Seconds of an epoch, of as many runs at once as there are cores, by their number."""
    count = cores()
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        runs = [pool.submit(one_run, data_dir, batch_size, seed, tiny) for seed in range(count)]
        return 50_000 / sum(run.result() for run in runs)


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
    rounds: list[dict[int, tuple[float, float]]] = []  # seconds of an epoch by batch size: theirs, ours
    with plain_process(reuse=options.tiny) as plain:
        for _ in range(options.rounds):
            rounds.append({})
            for batch_size in BATCH_SIZES:
                their_seconds = theirs(options.data_dir, batch_size, images, plain)
                rounds[-1][batch_size] = their_seconds, ours(options.data_dir, batch_size, options.tiny)
                print(batch_size, *map(number, rounds[-1][batch_size]), flush=True)

    def row(name: str, pairs: Sequence[tuple[float, float]]) -> list[str]:
        ratio, extent = spread([our / their for their, our in pairs])
        return [name, *(number(median(seconds)) for seconds in zip(*pairs, strict=True)), ratio, extent]

    totals = [tuple(EPOCHS * sum(part) / 60 for part in zip(*turn.values(), strict=True)) for turn in rounds]
    rows = [row(f"batch {size}, an epoch, s", [turn[size] for turn in rounds]) for size in BATCH_SIZES]
    rows.append(row("all 630 epochs, minutes", [(their, our) for their, our in totals]))
    text = header("Time of the nine cells", "benchmarks.sweep_time", arguments, options.rounds) + "\n\n"
    text += table(["", "the report's pipeline", "the sweep", "ratio", "range"], rows) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
