"""How a CPU's memory is handled so that training is fast."""

import ctypes
import platform

# Parameter numbers from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Let the process reuse the memory that tensors free, instead of giving it back to the system and asking anew.

    Each training step takes and frees the same tens of megabytes. glibc may return them each time, and then the kernel
    has to map and clear every page again in the next step, which costs up to a third of it. Whether it does depends on
    what happens to lie on the heap, and so changes from run to run. Elsewhere than on glibc this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 64 * 2**20)  # smaller blocks, all activations of a step, come from the heap
        libc.mallopt(M_TRIM_THRESHOLD, 512 * 2**20)  # the heap shrinks only when this much at its end is free
