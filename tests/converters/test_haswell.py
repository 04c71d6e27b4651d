"""int8 on a processor without VNNI: qemu's Haswell, where pairs of u8×s8 products saturate in 16 bits.

The arithmetic is real there, the speed is not.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stlm_edge.bundle import open_bundle
from stlm_edge.export.pipeline import Exported
from stlm_edge.runtimes.onnxruntime import OnnxRuntime

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(QEMU is None, reason="qemu's user emulation is not installed: qemu-user-static"),
]

MULTIPLY = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(json.dumps(session.run(None, {"x": numpy.full((1, 64), 255, "uint8")})[0].ravel().tolist()))
"""
JUDGE = """
import json, sys, numpy
from stlm_edge.runtimes.onnxruntime import OnnxRuntime
runtime = OnnxRuntime(sys.argv[1], threads=1)
images = numpy.load(sys.argv[2])
answers = [runtime.run(image) for image in images]
numpy.save(sys.argv[3], numpy.stack([anomaly_map for anomaly_map, _ in answers]))
print(json.dumps([score for _, score in answers]))
"""


def on_haswell(program: str, *arguments: Path) -> list[float]:
    assert QEMU
    command = [QEMU, "-cpu", "Haswell", sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("weight", "right"), [(64, True), (127, False)])
def test_eight_bit_weights_saturate_without_vnni_and_seven_bit_weights_do_not(
    tmp_path: Path, weight: int, right: bool
) -> None:
    """The emulated processor has the limitation that the next test is about."""
    weights = numpy_helper.from_array(np.full((64, 16), weight, np.int8), "w")
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "product.onnx")
    assert (on_haswell(MULTIPLY, tmp_path / "product.onnx") == [64 * 255 * weight] * 16) == right


def test_int8_bundle_gives_the_same_outputs_without_vnni(exported: dict[str, Exported], tmp_path: Path) -> None:
    bundle = open_bundle(exported["int8"].folder)
    artifact = exported["int8"].folder / "model.onnx"
    images = np.stack([golden.tensor for golden in bundle.golden()])
    np.save(tmp_path / "images.npy", images)
    scores = on_haswell(JUDGE, artifact, tmp_path / "images.npy", tmp_path / "maps.npy")
    here = [OnnxRuntime(artifact, threads=1).run(image) for image in images]
    assert np.abs(np.load(tmp_path / "maps.npy") - np.stack([anomaly_map for anomaly_map, _ in here])).max() < 5e-3
    assert scores == pytest.approx([score for _, score in here], abs=bundle.manifest.verdict_delta)
