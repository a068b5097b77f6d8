"""How a result is written down: its figures, with the command and the machine that made them."""

import datetime
import math
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytorch_lightning as pl
import torch

from core.cores import cores
from core.shell import format_command


def write_header(title: str, module: str, arguments: Sequence[str], rounds: int) -> str:
    """Title and origin of a page, in Markdown; `module` is what made it."""
    return "\n".join(
        [
            f"# {title}\n",
            f"- command: `{format_command('python', '-m', module, *arguments)}`",
            f"- processor: {name_processor()}, {cores()} cores, {torch.get_num_threads()} threads",
            f"- commit: {find_commit()}",
            f"- versions: Python {platform.python_version()}, torch {torch.__version__}, Lightning {pl.__version__}",
            f"- date: {datetime.date.today()}",
            f"- rounds: {rounds}",
        ]
    )


def find_commit() -> str:
    """Of the code that runs, as far as git tells."""
    git = shutil.which("git")
    if not git:
        return "unknown"
    line = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(line, capture_output=True, text=True).stdout.strip() or "unknown"


def name_processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def summarize(values: Sequence[float]) -> tuple[str, str]:
    """Median and range as text."""
    if any(math.isnan(value) for value in values):
        return "not measured", ""
    return format_number(median(values)), f"{format_number(min(values))} to {format_number(max(values))}"


def format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
