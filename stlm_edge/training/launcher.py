"""Training in several processes: `--devices N` starts them here, torchrun starts them itself, Fabric joins them."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO

import torch
from lightning_fabric import Fabric

from stlm_edge.errors import JobError, UsageError

_SUPERVISED = "STLM_EDGE_SUPERVISED"
_LOST_A_PEER = 3  # exit code of a process that stops only because another one did
_GRACE_SECONDS = 3.0  # in which the first process may report the error itself


def open_fabric(bf16: bool) -> Fabric:
    """Return this process's device (a GPU where there is one, else the CPU), joined with those of other processes."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    cuda = torch.cuda.is_available()
    if cuda and local_world > torch.cuda.device_count():
        raise UsageError(f"{local_world} processes and {torch.cuda.device_count()} GPUs; start one process per GPU")
    fast = bf16 and (cuda or bool(torch.cpu.get_capabilities().get("avx512_bf16")))
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it logs the precision
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=local_world,
        num_nodes=world // local_world,
        strategy="ddp" if world > 1 else "auto",
        precision="bf16-mixed" if fast else "32-true",
    )
    fabric.launch()
    return fabric


@contextlib.contextmanager
def report_errors_once() -> Iterator[None]:
    """Let one of several processes report an error that they have in common.

    Under `supervise`, which reports errors, all raise a UsageError or JobError, else the first process of a machine.
    The communication error that follows another process's death becomes a JobError, or under `supervise` an exit code.
    """
    try:
        yield
    except (UsageError, JobError) as error:
        if _SUPERVISED in os.environ or os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
    except (RuntimeError, ValueError) as error:
        if not torch.distributed.is_initialized() or not _is_lost_connection(error):
            raise
        if _SUPERVISED in os.environ or torch.distributed.get_rank():
            sys.stderr.flush()
            os._exit(_LOST_A_PEER)  # a normal exit would wait for the lost process
        raise JobError("another process of this training died; start it again with --resume") from None


def supervise(count: int, advice: str = "start it again with --resume") -> int:
    """Run this command in `count` joined processes, of which the first one prints; return its exit code.

    When one dies, the others are killed, and the JobError names it and ends with `advice`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), _SUPERVISED: "1"}
    shared |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))}
    processes: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count)]
        stack.callback(_kill, processes)
        for rank in range(count):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count), "NODE_RANK": "0"}
            quiet = {"stdout": subprocess.DEVNULL, "stderr": errors[rank]} if rank else {}
            command = [sys.executable, sys.argv[0], *sys.argv[1:]]
            processes.append(subprocess.Popen(command, env=os.environ | shared | ranks, **quiet))  # type: ignore[call-overload]
        return _wait(processes, errors, advice)


def is_supervisor_needed(count: int) -> bool:
    """Return whether `--devices` asks for processes that have not been started yet."""
    return count > 1 and "LOCAL_RANK" not in os.environ


def _kill(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _wait(processes: list[subprocess.Popen], errors: Sequence[IO[str]], advice: str) -> int:
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, _LOST_A_PEER)]
        if failed:
            break
        if None not in codes:
            if _LOST_A_PEER in codes:
                raise JobError(f"the processes lost their connection; {advice}")
            return 0
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        processes[0].wait(_GRACE_SECONDS)
    if (processes[0].poll() or 0) > 0 and processes[0].returncode != _LOST_A_PEER:
        return processes[0].returncode
    rank = failed[0]
    code = processes[rank].returncode
    if code < 0:
        raise JobError(f"process {rank + 1} of {len(processes)} was ended by signal {-code}; {advice}")
    errors[rank].seek(0)
    lines = errors[rank].read().strip().splitlines()
    raise JobError(lines[-1].removeprefix("error: ") if lines else f"process {rank + 1} failed with exit code {code}")


def _is_lost_connection(error: Exception) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return any(word in str(error) for word in ("Connection closed by peer", "Connection reset", "gloo", "Broken pipe"))
