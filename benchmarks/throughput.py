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
import math
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any, TypeAlias

import pandas
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from analysis.reports import HISTORY
from benchmarks import lightning_pipeline, report_pipeline
from benchmarks.page import name_processor, summarize, write_header
from benchmarks.processes import make_executor, measure_memory, measure_start
from cifar10 import download
from cifar10.config import Augmentation
from cifar_datamodule import AugmentedBatches, CIFAR10DataModule
from core.markdown import markdown_table
from lenet_module import LeNet5
from models.config import Network
from models.optimizers import OPTIMIZERS, make_optimizer, make_schedule
from models.registry import make_network
from training.hardware import fastest_precision, keep_freed_memory
from training.run import train

OUT = Path("results/throughput")  # a page for each processor
GOALS = {"AMX": ">= 3.5", "AVX-512 BF16": ">= 2.5", "float32": ">= 1.9"}  # C by A or B, at their defaults, by processor
BATCH_SIZES = (64, 128)  # the report's, and the default of C
WORKERS = (0, 2)  # of the DataLoader of A and B

Figures: TypeAlias = dict[str, float]  # of one round, by what they are; images/s unless the name has another unit


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        images: Trained on by A and B, and classified for the rate of inference.
        val_size: Validation images of C and D.
        batches: Of each pass of D, None for all; unless None, C has one batch of each, and no logs.
        repeats: Of making a batch with each kind of augmentation.
    """

    images: int
    val_size: int
    batches: int | None
    repeats: int


FULL = Sizes(images=6400, val_size=5000, batches=None, repeats=100)
TINY = Sizes(images=256, val_size=100, batches=2, repeats=3)


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


def measure_inference(images: int) -> Figures:
    """Images/s of classification."""
    model, figures = LeNet5().eval(), {}
    for batch_size in (1, 128, 1000):
        batch = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        passes = math.ceil(images / batch_size)
        with torch.inference_mode():
            start = time.perf_counter()
            for _ in range(passes):
                model(batch)
        figures[f"inference, batch {batch_size}"] = passes * batch_size / (time.perf_counter() - start)
    return figures


def measure_augmentation(data_dir: Path, step_seconds: float, repeats: int) -> Figures:
    """What each kind adds to the time of making a batch of 128, in percent of a training step."""
    datamodule = CIFAR10DataModule(data_dir=data_dir, val_size=0)
    datamodule.setup()
    assert datamodule._train is not None and datamodule.mean is not None and datamodule.std is not None
    data = (*datamodule._train, datamodule.mean, datamodule.std)
    default, versions = datamodule.config, datamodule._corrupted
    kinds = {"none": Augmentation(crop=0, flip=False), "all that is default": default}
    datasets = {kind: AugmentedBatches(*data, kinds[kind], 0, corrupted=versions) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats + 1):
        for kind, dataset in datasets.items():
            indices = torch.randint(len(data[0]), (128,))  # others each time, which no kind finds in the caches
            start = time.perf_counter()
            dataset[0, indices]
            seconds[kind].append(time.perf_counter() - start)
    # The first batch is left out: it draws the plan of the epoch.
    cost = {kind: 100 * median(values[1:]) / step_seconds for kind, values in seconds.items()}
    figures = {f"augmentation, {kind}, % of a step": cost[kind] - cost["none"] for kind in kinds if kind != "none"}
    return figures | {"the whole of making a batch, % of a step": cost["all that is default"]}


def measure_round(data_dir: Path, sizes: Sizes, plain: Executor) -> Figures:
    """What is measured in this process, and what `plain`, a new process for each task, measures beside it."""
    figures = {}
    pipelines = {"A": report_pipeline.measure_training, "B": lightning_pipeline.measure_training}
    for (pipeline, measure), batch_size, workers in itertools.product(pipelines.items(), BATCH_SIZES, WORKERS):
        rate = plain.submit(measure, data_dir, batch_size, workers, sizes.images).result()
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
    step_seconds = 128 / figures["D, batch 128, training alone"]
    return figures | measure_augmentation(data_dir, step_seconds, sizes.repeats) | measure_inference(sizes.images)


def measure_processes(data_dir: Path, sizes: Sizes) -> Figures:
    """Measure what concerns whole processes."""
    flags = ["--epochs", "1", "--val_size", str(sizes.val_size)]
    memory_flags = [*flags, "--fast_dev_run"] if sizes == TINY else flags
    return measure_start(data_dir, flags) | measure_memory(data_dir, sizes.images, memory_flags)


def name_kind() -> str:
    """What the processor is to a training step."""
    if fastest_precision() == "32-true":
        return "float32"
    return "AMX" if torch.cpu.get_capabilities()["amx_bf16"] else "AVX-512 BF16"


def choose_page() -> Path:
    """Where the figures of this processor are."""
    return OUT / (re.sub(r"[^a-z0-9]+", "-", f"{name_processor()} {name_kind()}".lower()) + ".md")


def compare_rates(f: Figures, fastest: dict[tuple[str, int], str]) -> dict[str, tuple[float, str]]:
    """Ratios of one round and their goals; `fastest` names the figures of A and B, by batch size, to compare with."""
    float32 = ", float32" if "D, batch 128, float32" in f else ""  # where it is not the default
    ratios = {}
    for pipeline, (ours, theirs) in itertools.product("AB", ((64, 64), (128, 128), (128, 64))):
        name = fastest[pipeline, theirs]
        goal = GOALS[name_kind()] if ours != theirs else ""  # both at their defaults
        ratios[f"C, batch {ours}, steady / {name}"] = f[f"C, batch {ours}, steady"] / f[name], goal
    for case, goal in {f"batch 128{float32}": "<= 5", "batch 128": "<= 8" if float32 else "<= 5"}.items():
        slower = 100 * (f[f"D, {case}"] / f[f"C, {case}, steady"] - 1)
        ratios[f"C, steady, slower than D, {case}, %"] = slower, goal
    share = 100 * f[f"D, batch 128{float32}, training alone"] / f["E"]
    return ratios | {
        "C, batch 128, first epoch slower than steady, %": (
            100 * (f["C, batch 128, steady"] / f["C, batch 128, first epoch"] - 1),
            "",
        ),
        f"D, batch 128{float32}, training alone / E, %": (share, ">= 55"),
        "default augmentation, % of a step": (f["augmentation, all that is default, % of a step"], "<= 3"),
        "start, in all / bare import": (f["start, in all, s"] / f["start, bare import, s"], "<= 1.2"),
        "peak memory of a default run above the bare import, GB": (
            f["peak memory of C, GB"] - f["peak memory of bare import, GB"],
            "<= 0.4",
        ),
    }


def write_tables(rounds: Sequence[Figures]) -> str:
    """Medians and ranges of the figures, and of their ratios."""
    names = sorted(rounds[0], key=lambda name: name[0] if name[0].isupper() else "a")  # A to E, then the others
    figures = [[name, *summarize([figures[name] for figures in rounds])] for name in names]

    fastest = {}
    for pipeline, batch_size in itertools.product("AB", BATCH_SIZES):
        choices = [f"{pipeline}, batch {batch_size}, {workers} workers" for workers in WORKERS]
        fastest[pipeline, batch_size] = max(choices, key=lambda name: median(figures[name] for figures in rounds))

    compared = [compare_rates(figures, fastest) for figures in rounds]
    ratios = []
    for name, (_, goal) in compared[0].items():
        middle, extent = summarize([ratios[name][0] for ratios in compared])
        ratios.append([name, f"{middle} ({extent})" if extent else middle, goal])
    return "\n\n".join(
        [
            markdown_table(["what (images/s unless it says another unit)", "median", "range"], figures),
            markdown_table(["ratio, formed within a round", "measured", "goal"], ratios),
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
    with make_executor(reuse=options.tiny) as plain:
        if not options.tiny:
            measure_round(options.data_dir, sizes, plain)  # warms up
        for number in range(1, round_count + 1):
            print(f"round {number} of {round_count}", flush=True)
            figures = measure_round(options.data_dir, sizes, plain)
            rounds.append(figures | measure_processes(options.data_dir, sizes))
    pipelines = "\n".join(f"- {line}" for line in (__doc__ or "").split("\n\n")[2].splitlines())
    text = write_header("Throughput", "benchmarks.throughput", arguments, round_count)
    text += f"\n\n{pipelines}\n\n{write_tables(rounds)}\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
