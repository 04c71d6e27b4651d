"""What a device tells of itself: an NVIDIA GPU by a stand-in nvidia-smi, a Jetson by a stand-in tegrastats, and an
emulator that plays the processor."""

import os
import sys
from pathlib import Path

import pytest
from test_jetson import JETPACK_7_2

from stlm_edge.bench.machine import during, system
from stlm_edge.bench.machine.nvidia import parse_gpus
from stlm_edge.bench.measure import Plan, Subject, measure, unmeasured
from stlm_edge.bundle import open_bundle

ONE = "NVIDIA GeForce RTX 4070, 550.54.14, 2475, 10501, 61, 97, 1234"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that puts a stand-in for a program on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def write(name: str, text: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    return write


def test_gpus_are_read_as_nvidia_smi_tells_them() -> None:
    one = parse_gpus(ONE + "\n")
    assert one is not None
    assert one.words == "NVIDIA GeForce RTX 4070, driver 550.54.14"
    assert (one.clocks, one.celsius) == ({"GPU": 2475.0, "GPU memory": 10501.0}, {"GPU": 61.0})
    assert (one.percent, one.memory_mb) == (97.0, 1234.0)
    two = parse_gpus(f"{ONE}\n{ONE.replace('4070', '3060').replace('61', '[N/A]')}\n")
    assert two is not None
    assert two.words == "NVIDIA GeForce RTX 4070 and NVIDIA GeForce RTX 3060, driver 550.54.14"
    assert two.celsius == {"GPU 0": 61.0}
    for text in ("", "No devices were found\n", "Orin (nvgpu), [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\n"):
        assert parse_gpus(text) is None


def test_a_gpu_is_part_of_the_machine(tool) -> None:
    tool("nvidia-smi", f'echo "{ONE}"')
    told = system.describe((), system.moment())
    assert told.gpu == "NVIDIA GeForce RTX 4070, driver 550.54.14"
    assert told.clocks["GPU"] == 2475.0
    assert told.celsius_before["GPU"] == told.celsius_after["GPU"] == 61.0
    tool("nvidia-smi", "exit 9")
    assert system.describe().gpu is None


def test_a_row_tells_clocks_and_temperatures_while_it_was_timed(
    tool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(during, "INTERVAL_S", 0.1)
    cooler = JETPACK_7_2.replace("[1020,1020]", "[510,510]").replace("52.9C/52.9C", "40C/40C")
    tool("tegrastats", f"while echo '{cooler}'; do sleep 0.1; echo '{JETPACK_7_2}'; sleep 0.1; done")
    bundle = open_bundle(tiny_bundle)
    (row,) = measure([Subject(unmeasured(bundle, 1, 1), bundle)], Plan(20, 2.0), lambda _: None)
    assert row.during is not None
    assert row.during.readings > 3
    low, mean, high = row.during.clocks["GPU"]
    assert (low, high) == (510, 1020)
    assert low < mean < high
    assert row.during.celsius["cpu"] == 52.9
    assert (row.during.gpu_percent, row.during.memory_mb) == (12.0, 4100.0)


def test_a_machine_that_tells_nothing_leaves_it_out() -> None:
    assert during.summary([]) is None
    assert during.summary([during.Reading({}, {})]) is None


def test_an_emulator_is_seen_behind_the_maps_that_it_makes_up(tmp_path: Path) -> None:
    maps = tmp_path / "proc" / "thread-self" / "maps"
    maps.parent.mkdir(parents=True)
    line = "00400000-00401000 r-xp 00000000 08:01 1234                       "
    for program, found in {
        "/usr/bin/qemu-aarch64-static": "qemu-aarch64-static",
        "/usr/local/bin/box64": "box64",
        "/usr/bin/python3.11": None,
        "/home/me/qemu-tests/python3": None,
        "": None,
    }.items():
        maps.write_text(f"{line}{program}\n")
        assert system.emulator(tmp_path) == found
    assert system.emulator() is None, sys.platform
