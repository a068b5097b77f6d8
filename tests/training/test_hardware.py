import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import ROOT, resume
from models.checkpoint import load_checkpoint
from training import hardware
from training.checkpoints import read_checkpoint_config
from training.hardware import fastest_precision

COUNT_PAGE_FAULTS = """
import resource
import torch
from training.hardware import keep_freed_memory, return_freed_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for prepare in (return_freed_memory, keep_freed_memory):
    prepare()
    counts = []
    for _ in range(25):
        before = faults()
        torch.ones(10_000_000)  # 40 MB, which glibc by default never keeps
        counts.append(faults() - before)
    print(min(counts))  # the system may take pages of its own accord, but not in each step
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back so eagerly")
def test_freed_memory_is_reused_without_asking_the_system_again() -> None:
    line = [sys.executable, "-c", COUNT_PAGE_FAULTS]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT)
    returned, kept = map(int, done.stdout.split())
    assert kept < returned / 10


@pytest.mark.parametrize(
    ("instructions", "limit", "precision"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, None, "bf16-mixed"),
        ({"amx_bf16": False, "avx512_bf16": True}, None, "bf16-mixed"),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}, None, "32-true"),
        ({"architecture": "aarch64", "bf16": True}, None, "32-true"),
        ({"avx512_bf16": True}, "AVX512_CORE_BF16", "bf16-mixed"),
        ({"avx512_bf16": True}, "avx2", "32-true"),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_has_instructions_for_it(
    instructions: dict[str, Any], limit: str | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert fastest_precision() == precision
    assert fastest_precision("gpu") == "32-true"
    for there in (True, False):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda there=there: there)
        assert fastest_precision("auto") == ("32-true" if there else precision)


def test_a_pytorch_that_cannot_tell_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fastest_precision() == "32-true"


def test_a_run_keeps_the_precision_that_it_started_with_on_another_processor(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    precision = "32-true"
    monkeypatch.setattr(hardware, "fastest_precision", lambda accelerator: precision)
    result = run(epochs=1, schedule="constant")
    assert f"Number format: {precision}, 1 thread; " in capsys.readouterr().out
    assert yaml.safe_load(Path(result.log_dir, "config.yaml").read_text())["precision"] == precision
    monkeypatch.setattr(hardware, "fastest_precision", lambda accelerator: "another processor's")
    folder = result.checkpoint.parent
    resume(folder, epochs=2)
    assert f"Number format: {precision}, 1 thread; " in capsys.readouterr().out
    assert read_checkpoint_config(load_checkpoint(folder)).precision == precision
