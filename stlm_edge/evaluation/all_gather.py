"""All-gather of several processes that evaluate together; a process alone gathers its own result.

The processes are torchrun's, or whatever has initialised torch.distributed (gloo or NCCL).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from stlm_edge.errors import JobError, UsageError

T = TypeVar("T")


class LostPeer(JobError):
    """Another process died. Every remaining process reports it, since none knows which others remain."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes of torchrun, if any, over gloo: the results that they exchange are in main memory.

    A UsageError or JobError ends all of them, and only the first process reports it.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if launched:
        dist.init_process_group("gloo")
    try:
        yield
    except (UsageError, JobError) as error:
        if launched and rank() > 0 and not isinstance(error, LostPeer):
            raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
        raise
    finally:
        if launched:
            dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> str:
    """Return this process's own GPU, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def all_gather(work: Callable[[], T]) -> list[T]:
    """Do this process's work and return the results of all processes, by rank.

    A UsageError or JobError of one process is raised by all. Raises LostPeer when another process has died.
    """
    if count() == 1:
        return [work()]
    results: list[Any] = [None] * count()
    try:
        result: T | UsageError | JobError = work()
    except (UsageError, JobError) as error:
        result = error
    try:
        dist.all_gather_object(results, result)
    except RuntimeError as error:
        line = str(error).splitlines()[0][:200]
        raise LostPeer(f"process {rank()} of {count()} lost the others, one of them died ({line})") from None
    for gathered in results:
        if isinstance(gathered, UsageError | JobError):
            raise gathered
    return results
