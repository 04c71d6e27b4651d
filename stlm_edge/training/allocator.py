"""How the C library hands out memory to tensors on a CPU.

glibc fetches every large block from the kernel and returns it at once when freed. A training step does so with tens of
gigabytes, and the kernel clears them page by page: at 1024×1024 that can take longer than a third of the step.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_DEFAULTS = {_M_MMAP_MAX: 65536, _M_TRIM_THRESHOLD: 128 << 10}
_KEEPING = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}


def keep_freed_memory(keep: bool = True) -> bool:
    """Let freed memory serve the next tensors instead of going back to the kernel; False undoes it and returns it.

    Tells whether that was possible: with glibc it is; elsewhere nothing changes.
    """
    libc = _glibc()
    if libc is None:
        return False
    done = all(libc.mallopt(option, value) for option, value in (_KEEPING if keep else _DEFAULTS).items())
    if not keep:
        return_freed_memory()
    return done


def return_freed_memory() -> None:
    """Give what is free at this moment back to the kernel.

    Wanted once after a training's first step: the gaps that the optimiser's state has left between it, too small for
    any tensor, then stop counting.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
