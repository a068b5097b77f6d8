"""How many cores a process may use, whatever the machine has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from core import cores
from training.config import RunConfig
from training.run import complete


@pytest.fixture(autouse=True)
def no_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that tells a container's limit, which is not there."""
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound to cores here")
def test_of_a_process_that_is_bound_to_one_core_there_is_one() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from core.cores import cores"
    code += "; from experiments.study import count_workers; print(cores(), count_workers())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.parametrize(("text", "expected"), [("200000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 8)])
def test_a_containers_limit_is_kept(
    no_container: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: int
) -> None:
    monkeypatch.setattr(cores.psutil.Process, "cpu_affinity", lambda process: range(8), raising=False)
    assert cores.cores() == 8
    no_container.write_text(text)
    assert cores.cores() == expected


def test_a_run_has_no_more_threads_than_its_container_has_cores(no_container: Path) -> None:
    torch.set_num_threads(2)
    no_container.write_text("100000 100000\n")
    assert complete(RunConfig()).threads == 1
    assert complete(RunConfig(threads=2)).threads == 2
