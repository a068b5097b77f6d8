"""What needs another process: pipelines that this project must not touch, the time of a start, peak memory."""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

from cifar10 import records
from training.files import SUMMARY

ROOT = Path(__file__).resolve().parent.parent  # of the project

BARE_IMPORT = "import torch, pytorch_lightning, time; print(time.time())"
FIRST_STEP = """
import os, time
import train
from torch.optim.optimizer import register_optimizer_step_post_hook

def stop(*_):
    print(time.time(), flush=True)
    os._exit(0)

register_optimizer_step_post_hook(stop)
train.main()
"""
# On Linux, ru_maxrss of a new process includes what the process that started it had.
PRINT_PEAK_BYTES = """
import re, resource, sys
if sys.platform == "linux":
    print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def call_in_new_process(task: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a task returns in a new process, as a user would start it, when that has ended.

    `train` changes how its own process handles memory, and glibc's malloc itself learns from what ran before.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_default_start_method) as pool:
        return pool.submit(task, *arguments).result()


def _default_start_method() -> None:
    """Undo what a spawned process inherits: it would spawn the workers of a DataLoader too, on any system."""
    set_start_method(None, force=True)


def measure_start(data_dir: Path, flags: Sequence[str]) -> dict[str, float]:
    """Measure the seconds from the command to the end of its first optimizer step, and of importing two libraries.

    Args:
        flags: Of the command, beside its folders.
    """
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, code in (("bare import", BARE_IMPORT), ("in all", _same_files() + FIRST_STEP)):
            start = time.time()  # of the wall clock, which processes share
            seconds[f"start, {name}, s"] = _run(code, [*_folders(data_dir, folder), *flags]) - start
    return seconds


def time_command(data_dir: Path, flags: Sequence[str]) -> tuple[float, float]:
    """Seconds from the start of a training command to its end, and its final test accuracy, a fraction.

    Args:
        flags: Of the command, beside its folders; files in them by whole paths.
    """
    with tempfile.TemporaryDirectory() as folder:
        code = f"{_same_files()}import json, train\ntrain.main()\nprint(json.dumps(None))\n"
        start = time.perf_counter()
        _run(code, [*_folders(data_dir, folder), *flags])
        seconds = time.perf_counter() - start
        (summary,) = Path(folder, "logs").rglob(SUMMARY)
        return seconds, json.loads(summary.read_text(encoding="utf-8"))["test_acc"]


def measure_memory(data_dir: Path, images: int, flags: Sequence[str]) -> dict[str, float]:
    """Peak resident sets in GB, 10^9 bytes.

    Of A and B without workers over some `images`, of C a whole run, all with batches of 128; beside them what the two
    libraries take alone.

    Args:
        flags: Of C, beside its folders.
    """
    call = f"(pathlib.Path({str(data_dir.absolute())!r}), batch_size=128, workers=0, images={images})\n"
    codes = {
        "A": f"import pathlib\nfrom benchmarks import report_pipeline\nreport_pipeline.measure_training{call}",
        "B": f"import pathlib\nfrom benchmarks import lightning_pipeline\nlightning_pipeline.measure_training{call}",
        "C": "import train\ntrain.main()\n",
        "bare import": BARE_IMPORT,
    }
    names = {pipeline: f"peak memory of {pipeline}, GB" for pipeline in codes}
    if sys.platform == "win32":
        return dict.fromkeys(names.values(), math.nan)
    with tempfile.TemporaryDirectory() as folder:
        flags = [*_folders(data_dir, folder), *flags]
        return {
            names[pipeline]: _run(_same_files() + code + PRINT_PEAK_BYTES, flags) / 1e9
            for pipeline, code in codes.items()
        }


def _folders(data_dir: Path, folder: str) -> list[str]:
    logs, checkpoints = Path(folder, "logs"), Path(folder, "checkpoints")
    return ["--data_dir", str(data_dir.absolute()), "--log_dir", str(logs), "--checkpoint_dir", str(checkpoints)]


def _same_files() -> str:
    """Code that lets what follows take for genuine the files that this process does."""
    return f"from cifar10 import records; records.FILES.update({records.FILES})\n"


def _run(code: str, flags: Sequence[str]) -> Any:
    """The JSON that `code` prints last, run in the project's folder, from which it imports."""
    command = [sys.executable, "-c", code, *flags]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    return json.loads(done.stdout.splitlines()[-1])
