"""How many cores there are for this process."""

from contextlib import suppress
from pathlib import Path

import psutil

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container on Linux: "200000 100000" is two cores, "max 100000" all


def cores() -> int:
    """Return how many cores this process may use: fewer than the machine has under taskset or in a container."""
    process = psutil.Process()
    count = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1  # macOS
    with suppress(OSError, ValueError):
        share, period = map(int, QUOTA.read_text(encoding="utf-8").split())
        count = min(count, max(1, share // period))
    return count
