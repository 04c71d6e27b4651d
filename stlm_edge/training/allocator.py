"""Settings of the C library's allocator for training on a CPU.

glibc maps every large block from the kernel and returns it when freed. A training step does so with tens of gigabytes,
and the kernel clears them page by page: at 1024×1024 that can take more than a third of the step. Elsewhere than with
glibc these functions do nothing.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Keep freed memory for the next tensors instead of returning it to the kernel."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Return the memory that is free now to the kernel.

    Needed once after a training's first step: the optimiser's state leaves gaps that are too small for any tensor.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
