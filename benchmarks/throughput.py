"""How fast this machine trains, beside the report's pipeline, plain Lightning and the limit of its arithmetic.

    python -m benchmarks.throughput

A  the report's pipeline: image by image, a plain loop (report_pipeline.py)
B  plain Lightning: the same data and network under a plain Trainer (lightning_pipeline.py)
C  this project: `train()`, with batch normalization and corruption; "steady" leaves the first of its epochs out
D  a bare PyTorch loop that does the work of C, with the network and on the batches of C, in the same number format
E  the limit: a step's floating-point operations at the rate at which this machine multiplies float32 matrices

All is measured in turns, round after round, so that a noisy machine hits all alike, and ratios are formed within a
round. A and B have the batch size of the report, 64, and that of C's default, 128; with the workers that are faster for
each. C and D have the number format that `--precision auto` takes on this processor, unless a figure says float32.
"""

import argparse
import contextlib
import io
import itertools
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any, NamedTuple, TypeAlias

os.environ["MPLBACKEND"] = "agg"  # a notebook's backend, which may not be installed here

import pandas
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from analysis.reports import HISTORY
from benchmarks import lightning_pipeline, report_pipeline
from benchmarks.page import name_processor, summarize, write_header
from benchmarks.processes import call_in_new_process, measure_memory, measure_start
from cifar10 import download
from cifar_datamodule import CIFAR10DataModule
from core.cli import run_program
from core.markdown import markdown_table
from lenet_module import LeNet5
from models.config import Network
from models.optimizers import OPTIMIZERS, make_optimizer, make_schedule
from models.registry import make_network
from training.hardware import fastest_precision, keep_freed_memory
from training.run import train

OUT = Path("results/throughput")  # a page for each processor
BATCH_SIZES = (64, 128)  # the report's, and the default of C
WORKERS = (0, 2)  # of the DataLoader of A and B

Figures: TypeAlias = dict[str, float]  # of one round, by what they are; images/s unless the name has another unit


class Sizes(NamedTuple):
    """How much is measured."""

    images: int  # trained on by A and B
    val_size: int  # validation images of C and D
    batches: int | None  # of each pass of D, None for all; unless None, C has one batch of each, and no logs


FULL, TINY = Sizes(6400, 5000, None), Sizes(256, 100, 2)


def measure_ours(data_dir: Path, sizes: Sizes, **flags: Any) -> tuple[float, float]:
    """C: training images/s over the whole time of its first epoch, and of the two that follow."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        result = train(
            epochs=3,
            val_size=sizes.val_size,
            data_dir=data_dir,
            log_dir=Path(folder, "logs"),
            checkpoint_dir=Path(folder, "checkpoints"),
            fast_dev_run=sizes == TINY,
            **flags,
        )
        if not result.log_dir:
            return result.images_per_second, result.images_per_second
        first, *steady = pandas.read_csv(result.log_dir / HISTORY)["images_per_second"]
    return first, harmonic_mean(steady)


def measure_bare_loop(data_dir: Path, batch_size: int, sizes: Sizes, precision: str) -> tuple[float, float]:
    """D: training images/s over the whole time of an epoch, and over that of its training alone."""
    torch.use_deterministic_algorithms(True)  # as in C
    datamodule = CIFAR10DataModule(data_dir=data_dir, batch_size=batch_size, val_size=sizes.val_size)
    datamodule.setup()
    start = time.perf_counter()
    model = make_network(Network.network)
    loader = datamodule.train_dataloader()
    optimizer = make_optimizer(model.parameters(), "sgd", OPTIMIZERS["sgd"].lr, OPTIMIZERS["sgd"].weight_decay)
    schedule = make_schedule(optimizer, "onecycle", len(loader))
    count, loss_sum, correct = 0, 0.0, 0
    for images, labels in itertools.islice(loader, sizes.batches):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = model(images).float()
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        count += len(labels)
        loss_sum += loss.item() * len(labels)
        correct += int((logits.argmax(1) == labels).sum())
    train_seconds = time.perf_counter() - start
    model.eval()
    loss_sum, correct = 0.0, 0
    with torch.inference_mode():
        for images, labels in itertools.islice(datamodule.val_dataloader(), sizes.batches):
            logits = model(images)
            loss_sum += F.cross_entropy(logits, labels).item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
    return count / (time.perf_counter() - start), count / train_seconds


def count_flops() -> float:
    """Floating-point operations of a training step by its images; a multiplication and an addition are two."""
    batch_size = 128
    with FlopCounterMode(display=False) as counter:
        logits = LeNet5()(torch.zeros(batch_size, 3, 32, 32))
        F.cross_entropy(logits, torch.zeros(batch_size, dtype=torch.int64)).backward()
    return counter.get_total_flops() / batch_size


def measure_limit() -> float:
    """E: images/s if all of a step ran as fast as a product of float32 matrices [1024, 1024]."""
    side, products = 1024, 30
    left, right, product = torch.randn(3, side, side)
    seconds = []
    for _ in range(products):
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / median(seconds) / count_flops()


def measure_round(data_dir: Path, sizes: Sizes) -> Figures:
    """What is measured in this process, and in a new process for each of the pipelines to compare with."""
    figures: Figures = {}
    pipelines = {"A": report_pipeline.measure_training, "B": lightning_pipeline.measure_training}
    for (pipeline, measure), batch_size, workers in itertools.product(pipelines.items(), BATCH_SIZES, WORKERS):
        rate = call_in_new_process(measure, data_dir, batch_size, workers, sizes.images)
        figures[f"{pipeline}, batch {batch_size}, {workers} workers"] = rate
    formats = {"32-true": ", float32", fastest_precision(): ""}  # one alone where float32 is the fastest
    for batch_size, (precision, name) in itertools.product(BATCH_SIZES, formats.items()):
        case = f"batch {batch_size}{name}"
        first, steady = measure_ours(data_dir, sizes, batch_size=batch_size, precision=precision)
        keep_freed_memory()  # as while a run trains
        whole, training = measure_bare_loop(data_dir, batch_size, sizes, precision)
        figures |= {f"C, {case}, first epoch": first, f"C, {case}, steady": steady}
        figures |= {f"D, {case}": whole, f"D, {case}, training alone": training}
    figures["E"] = measure_limit()
    return figures


def measure_processes(data_dir: Path, sizes: Sizes) -> Figures:
    """Measure what concerns whole processes."""
    flags = ["--epochs", "1", "--val_size", str(sizes.val_size)]
    memory_flags = [*flags, "--fast_dev_run"] if sizes == TINY else flags
    return measure_start(data_dir, flags) | measure_memory(data_dir, sizes.images, memory_flags)


def choose_page() -> Path:
    """Where the figures of this processor are, by what it is to a training step."""
    bf16 = "AMX" if torch.cpu.get_capabilities().get("amx_bf16") else "AVX-512 BF16"
    kind = "float32" if fastest_precision() == "32-true" else bf16
    return OUT / (re.sub(r"[^a-z0-9]+", "-", f"{name_processor()} {kind}".lower()) + ".md")


def compare_rates(f: Figures, fastest: dict[tuple[str, int], str]) -> Figures:
    """Ratios of one round; `fastest` names the figures of A and B, by batch size, to compare with."""
    float32 = ", float32" if "D, batch 128, float32" in f else ""  # where it is not the default
    ratios = {}
    for pipeline, (ours, theirs) in itertools.product("AB", ((64, 64), (128, 128), (128, 64))):
        name = fastest[pipeline, theirs]
        ratios[f"C, batch {ours}, steady / {name}"] = f[f"C, batch {ours}, steady"] / f[name]
    for case in dict.fromkeys((f"batch 128{float32}", "batch 128")):
        ratios[f"C, steady, slower than D, {case}, %"] = 100 * (f[f"D, {case}"] / f[f"C, {case}, steady"] - 1)
    steady, first = f["C, batch 128, steady"], f["C, batch 128, first epoch"]
    ratios["C, batch 128, first epoch slower than steady, %"] = 100 * (steady / first - 1)
    alone = f"D, batch 128{float32}, training alone"
    ratios[f"{alone} / E, %"] = 100 * f[alone] / f["E"]
    ratios["start, in all / bare import"] = f["start, in all, s"] / f["start, bare import, s"]
    above = f["peak memory of C, GB"] - f["peak memory of bare import, GB"]
    return ratios | {"peak memory of a default run above the bare import, GB": above}


def write_tables(rounds: Sequence[Figures]) -> str:
    """Medians and ranges of the figures, and of their ratios."""
    names = sorted(rounds[0], key=lambda name: name[0] if name[0].isupper() else "a")  # A to E, then the others
    figures = [[name, *summarize([figures[name] for figures in rounds])] for name in names]
    fastest = {}
    for pipeline, batch_size in itertools.product("AB", BATCH_SIZES):
        choices = [f"{pipeline}, batch {batch_size}, {workers} workers" for workers in WORKERS]
        fastest[pipeline, batch_size] = max(choices, key=lambda name: median(figures[name] for figures in rounds))
    compared = [compare_rates(figures, fastest) for figures in rounds]
    ratios = [[name, *summarize([ratios[name] for ratios in compared])] for name in compared[0]]
    return "\n\n".join(
        [
            markdown_table(["what (images/s unless it says another unit)", "median", "range"], figures),
            markdown_table(["ratio, formed within a round", "median", "range"], ratios),
        ]
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of CIFAR-10")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="one round of next to nothing, to see whether all works")
    parser.add_argument("--out", type=Path, default=choose_page())
    options = parser.parse_args(arguments)
    if options.tiny and options.out == choose_page():
        parser.error("--tiny needs another --out: its figures mean nothing")

    sizes, round_count = (TINY, 1) if options.tiny else (FULL, options.rounds)
    download.prepare(options.data_dir)
    rounds = []
    if not options.tiny:
        measure_round(options.data_dir, sizes)  # warms up
    for number in range(1, round_count + 1):
        print(f"round {number} of {round_count}", flush=True)
        figures = measure_round(options.data_dir, sizes)
        rounds.append(figures | measure_processes(options.data_dir, sizes))
    pipelines = "\n".join(f"- {line}" for line in (__doc__ or "").split("\n\n")[2].splitlines())
    text = write_header("Throughput", "benchmarks.throughput", arguments, round_count)
    text += f"\n\n{pipelines}\n\n{write_tables(rounds)}\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(run_program(lambda: main(sys.argv[1:])))
