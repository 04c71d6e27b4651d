"""Profiles of onnxruntime, of a small network and of a tiny graph."""

from pathlib import Path

import numpy as np

from stlm_edge.bench.profile import PARTS, REST, flop_of, nodes_of, part_of, profile_of
from stlm_edge.export.pipeline import flops
from stlm_edge.model import checkpoint
from stlm_edge.runtimes.onnxruntime import OnnxRuntime


def test_profile_covers_every_part_and_all_operations(even_onnx: Path, even_checkpoint: Path) -> None:
    runtime = OnnxRuntime(even_onnx, threads=1)
    nodes = nodes_of(runtime, np.zeros((runtime.size, runtime.size, 3), np.uint8), runs=2)
    assert {part_of(node) for node in nodes} >= {*PARTS, REST}
    assert all(flop_of(node) == 0 for node in nodes if part_of(node) not in PARTS)
    model = checkpoint.load(even_checkpoint).model
    # More on a narrow network, whose channels onnxruntime pads to blocks of 8 or 16.
    assert 0.97 < sum(map(flop_of, nodes)) / flops(model) < 1.15


def test_a_separate_process_measures_the_profile(tiny_bundle: Path) -> None:
    found = profile_of(tiny_bundle, 1)
    assert found is not None
    assert found.parts[0].name == REST
    assert all(part.ms > 0 and part.megabytes > 0 for part in found.parts)
    assert found.gflop_per_second > 1
    assert found.gigabyte_per_second > 0.1


def test_a_failed_profile_is_none(tmp_path: Path) -> None:
    assert profile_of(tmp_path / "missing", 1) is None
