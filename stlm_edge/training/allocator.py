"""Settings of glibc's allocator for training on a CPU; with other C libraries these functions do nothing.

By default it maps and returns tens of gigabytes in every step, which at 1024×1024 can take more than a third of it.
"""

import ctypes
import platform

_GLIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Keep freed memory for the next tensors instead of returning it to the kernel."""
    if _GLIBC is not None:
        _GLIBC.mallopt(_M_MMAP_MAX, 0)
        _GLIBC.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Return free memory, once after the first step: the optimiser's state leaves gaps too small for any tensor."""
    if _GLIBC is not None:
        _GLIBC.malloc_trim(0)
