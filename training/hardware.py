"""How a run uses the machine: the number format of its training steps, and freed memory."""

import ctypes
import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

# oneDNN computes convolutions; a user may limit it to instruction sets that have no bfloat16.
WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")

# Parameter numbers from glibc's malloc.h, and what both are when a process starts.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
DEFAULT_THRESHOLD = 128 * 2**10


def fastest_precision(accelerator: str = "cpu") -> str:
    """Return "bf16-mixed" where the processor has instructions that multiply bfloat16 numbers, else "32-true".

    Decided by what the processor is, never by a timing. Without such instructions bfloat16 is up to 25 times slower
    (github.com/pytorch/pytorch/issues/183815). ARM processors and GPUs get float32, since they were not measured; so
    does a PyTorch that cannot tell.
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    instructions: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    has_bfloat16 = instructions.get("amx_bf16") or instructions.get("avx512_bf16")
    return "bf16-mixed" if on_cpu and has_bfloat16 and limit not in WITHOUT_BFLOAT16 else "32-true"


def keep_freed_memory() -> None:
    """Let the process reuse the memory that tensors free, instead of returning it to the system.

    Each training step takes and frees the same tens of megabytes. glibc may return them each time, and then the kernel
    has to map and clear every page again in the next step; results/speed.md has the cost. Whether it does
    depends on what happens to lie on the heap, and so changes from run to run. Elsewhere this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 64 * 2**20)  # smaller blocks, all activations of a step, come from the heap
        libc.mallopt(M_TRIM_THRESHOLD, 512 * 2**20)  # the heap shrinks only when this much at its end is free


def return_freed_memory() -> None:
    """End `keep_freed_memory`: what comes after the training steps would only add its memory to theirs."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, DEFAULT_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_THRESHOLD)
        libc.malloc_trim(0)
