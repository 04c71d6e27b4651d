"""One training in several processes: `--devices N` starts them here, torchrun starts them itself, Fabric joins them."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO

import torch
from lightning_fabric import Fabric

from stlm_edge.errors import JobError, UsageError

_SUPERVISED = "STLM_EDGE_SUPERVISED"
_LOST_A_PEER = 3  # exit code of a process that stops only because another one did
_GRACE = 3.0  # seconds in which the first process may say itself what went wrong


def open_fabric(bf16: bool) -> Fabric:
    """This process's share of the devices, GPUs where there are any, else the CPU; several processes are joined."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    cuda = torch.cuda.is_available()
    if cuda and here > torch.cuda.device_count():
        raise UsageError(f"{here} processes and {torch.cuda.device_count()} GPUs; start at most one process a GPU")
    fast = bf16 and (cuda or bool(torch.cpu.get_capabilities().get("avx512_bf16")))
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells which precision it was asked for
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=here,
        num_nodes=world // here,
        strategy="ddp" if world > 1 else "auto",
        precision="bf16-mixed" if fast else "32-true",
    )
    fabric.launch()
    return fabric


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Let only the first process of a machine say a UsageError or JobError that torchrun's processes have in common."""
    try:
        yield
    except (UsageError, JobError) as error:
        if _SUPERVISED in os.environ or os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None


@contextlib.contextmanager
def losing_a_peer_ends_the_job() -> Iterator[None]:
    """Turn the communication error that follows another process's death into one line, or into silence where the
    process that started this one says the line. Raises JobError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not torch.distributed.is_initialized() or not _is_a_lost_connection(error):
            raise
        if _SUPERVISED in os.environ or torch.distributed.get_rank():
            sys.stderr.flush()
            os._exit(_LOST_A_PEER)  # the others are gone: nothing is left to say goodbye to
        raise JobError("another process of this training died; start it again with --resume") from None


def supervise(count: int, advice: str = "start it again with --resume") -> int:
    """Run this very command in `count` joined processes; returns its exit code.

    The first process prints as ever. When one dies, the others are ended, and one line says so and gives the `advice`.
    Raises JobError.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), _SUPERVISED: "1"}
    shared |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))}
    processes: list[subprocess.Popen] = []
    said: list[IO[str]] = []
    try:
        for rank in range(count):
            said.append(tempfile.TemporaryFile("w+"))  # noqa: SIM115 (closed below)
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count), "NODE_RANK": "0"}
            quiet = {"stdout": subprocess.DEVNULL, "stderr": said[-1]} if rank else {}
            command = [sys.executable, sys.argv[0], *sys.argv[1:]]
            processes.append(subprocess.Popen(command, env=os.environ | shared | ranks, **quiet))  # type: ignore[call-overload]
        return _watch(processes, said, advice)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for file in said:
            file.close()


def is_supervisor_needed(count: int) -> bool:
    """Whether `--devices N` asks for processes that nobody has started yet."""
    return count > 1 and "LOCAL_RANK" not in os.environ


def _watch(processes: list[subprocess.Popen], said: list[IO[str]], advice: str) -> int:
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, _LOST_A_PEER)]
        if failed:
            break
        if None not in codes:
            if _LOST_A_PEER in codes:
                raise JobError(f"the processes lost each other; {advice}")
            return 0
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        processes[0].wait(_GRACE)
    if (processes[0].poll() or 0) > 0 and processes[0].returncode != _LOST_A_PEER:
        return processes[0].returncode
    rank = failed[0]
    code = processes[rank].returncode
    if code < 0:
        raise JobError(f"process {rank + 1} of {len(processes)} was ended by signal {-code}; {advice}")
    said[rank].seek(0)
    lines = said[rank].read().strip().splitlines()
    raise JobError(lines[-1].removeprefix("error: ") if lines else f"process {rank + 1} failed with exit code {code}")


def _is_a_lost_connection(error: Exception) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return any(word in str(error) for word in ("Connection closed by peer", "Connection reset", "gloo", "Broken pipe"))
