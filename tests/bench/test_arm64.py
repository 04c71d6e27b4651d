"""Parity on an arm64 processor emulated by qemu, whose results are real and whose latency is not."""

import shutil
from pathlib import Path

import pytest
from ssh_server import SshServer

from stlm_edge.bench.devices.device import Job, parse_device
from stlm_edge.bench.devices.remote import measure_over_ssh
from stlm_edge.bench.devices.ssh import Ssh
from stlm_edge.bench.measure import Plan
from stlm_edge.bundle import open_bundle

PYTHON = Path(__file__).parents[2] / "build" / "arm64" / "python"


@pytest.mark.slow
def test_arm64_device_gives_the_trained_models_verdicts(tiny_bundle: Path, sshd: SshServer) -> None:
    if not PYTHON.exists() or not shutil.which("qemu-aarch64-static"):
        pytest.skip("no arm64 Python: run make build/arm64, and apt-get install qemu-user-static")
    job = Job((open_bundle(tiny_bundle),), Plan(10, 0.0, time_limit_s=500.0))
    bench = measure_over_ssh(Ssh(parse_device(sshd.device), str(PYTHON), sshd.config), job, lambda text: None)
    assert bench.machine.architecture == "aarch64"
    assert "asimddp" in bench.machine.instructions
    (row,) = bench.rows
    assert row.passed, row.failure
    assert row.parity is not None
    assert row.parity.max_abs_diff is not None
    assert row.parity.max_abs_diff < 1e-5
    assert row.parity.resize_max_diff == 0
    assert row.parity.verdict_flips == 0
    assert bench.machine.emulated == "qemu-aarch64-static"
    assert row.untimed is not None
    assert (row.latency_ms, row.end_to_end_ms, row.load_ms, row.queries) == (None, None, None, 0)
