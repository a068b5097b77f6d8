import platform
import subprocess
import sys

import pytest

from conftest import ROOT

COUNT_PAGE_FAULTS = """
import resource, sys
import torch
from training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(25):
    before = faults()
    torch.ones(10_000_000)  # 40 MB, which glibc by default never keeps
    counts.append(faults() - before)
print(min(counts))  # the system may take pages of its own accord, but not in each step
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back so eagerly")
def test_freed_memory_is_reused_without_asking_the_system_again() -> None:
    def count(mode: str) -> int:
        line = [sys.executable, "-c", COUNT_PAGE_FAULTS, mode]
        return int(subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    assert count("keep") < count("leave") / 10
