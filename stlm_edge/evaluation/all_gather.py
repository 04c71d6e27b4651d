"""Several processes, one evaluation: which one this is, and what they tell one another. A process alone tells itself.

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
    """Another process died. Every survivor says so: nobody knows who is left to say it."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, where it did; over gloo, for what they exchange lies in main memory.

    A UsageError or JobError then ends all of them, and the first one alone says it.
    """
    start = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if start:
        dist.init_process_group("gloo")
    try:
        yield
    except (UsageError, JobError) as error:
        if start and rank() > 0 and not isinstance(error, LostPeer):
            raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
        raise
    finally:
        if start:
            dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> str:
    """This process's own GPU, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def share(work: Callable[[], T]) -> list[T]:
    """Do this process's work and return everybody's results, by rank.

    A UsageError or JobError of one process is raised by all. Raises LostPeer when another process has died.
    """
    result: T | UsageError | JobError
    try:
        result = work()
    except (UsageError, JobError) as error:
        if count() == 1:
            raise
        result = error
    results: list[Any] = [result]
    if count() > 1:
        results = [None] * count()
        try:
            dist.all_gather_object(results, result)
        except RuntimeError as error:
            line = str(error).splitlines()[0][:200]
            raise LostPeer(f"process {rank()} of {count()} lost the others, one of them died ({line})") from None
    for found in results:
        if isinstance(found, UsageError | JobError):
            raise found
    return results
