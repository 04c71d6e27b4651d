"""A row whose process the kernel kills because its control group has too little memory."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stlm_edge.bench.latency import Process
from stlm_edge.bench.machine.system import memory_kills
from stlm_edge.errors import JobError

LIMITS = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))  # version 1, 2


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group with 20 MB."""
    for parent, limit in LIMITS:
        group = Path(parent) / f"stlm-edge-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(20 << 20))
        except OSError:
            group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("a control group that limits memory can't be made here")


def test_an_out_of_memory_kill_is_reported_as_such(
    small_memory: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    confined = tmp_path / "python"
    confined.write_text(f'#!/bin/sh\necho $$ > {small_memory}/cgroup.procs\nexec {sys.executable} "$@"\n')
    confined.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(confined))
    before = memory_kills()
    with pytest.raises(JobError, match="killed by signal 9 while the machine was out of memory"):
        Process(["--bundle", str(tiny_bundle)]).open()
    assert memory_kills() > before
