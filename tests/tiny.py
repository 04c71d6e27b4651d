"""A small real bundle: a graph of a few nodes with an artifact's inputs and outputs, its images and golden outputs."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from stlm_edge.bundle.golden import GoldenCandidate, fit_golden, select_golden
from stlm_edge.bundle.parity import compare
from stlm_edge.bundle.writer import write_bundle
from stlm_edge.formats import metadata_entries
from stlm_edge.images import load
from stlm_edge.runtimes.onnxruntime import OnnxRuntime
from stlm_edge.threshold import calibrate

TINY_SIZE = 64


def write_tiny_onnx(path: Path, size: int, with_score: bool = True, gain: float = 4.0, extra: str = "") -> None:
    """map = sigmoid(gain × |grey − grey averaged over 15×15| / 16 − 4), score = mean of the map's 100 highest values.

    `extra` = "nan" makes the map NaN. Needs ONNX opset 17.
    """
    constants = {
        "third": np.full((1, 1, 1, 3), 1 / 3, np.float32),
        "axes": np.array([3], np.int64),
        "gain": np.float32(gain / 16),
        "four": np.float32(4.0),
        "flat": np.array([size * size], np.int64),
        "hundred": np.array([100], np.int64),
        "zero": np.float32(0),
        "first": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "third"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axes"], ["grey_nhw1"]),
        helper.make_node("Transpose", ["grey_nhw1"], ["grey"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["grey"], ["blurred"], kernel_shape=[15, 15], pads=[7, 7, 7, 7]),
        helper.make_node("Sub", ["grey", "blurred"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("Mul", ["distance", "gain"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "four"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["plain_map" if extra == "nan" else "anomaly_map"]),
    ]
    if extra == "nan":
        nodes.append(helper.make_node("Div", ["zero", "zero"], ["nan"]))
        nodes.append(helper.make_node("Add", ["plain_map", "nan"], ["anomaly_map"]))
    outputs = [helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 1, size, size])]
    if with_score:
        nodes += [
            helper.make_node("Reshape", ["anomaly_map", "flat"], ["values"]),
            helper.make_node("TopK", ["values", "hundred"], ["highest", "indices"]),
            helper.make_node("ReduceMean", ["highest"], ["score"], keepdims=1),
        ]
        outputs.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, [1]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, size, size, 3])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def set_metadata(path: Path, entries: dict[str, str]) -> None:
    """Set entries of an ONNX file's metadata and keep its others."""
    model = onnx.load(path)
    helper.set_model_props(model, {entry.key: entry.value for entry in model.metadata_props} | entries)
    path.write_bytes(model.SerializeToString())


def tiny_image(seed: int, defect: bool = False, width: int = 120, height: int = 90) -> Image.Image:
    """A grey surface with grain; with a defect, a bright spot whose strength depends on the seed."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(128 + seed % 7, 4, (height, width, 3))
    if defect:
        y, x = np.mgrid[0:height, 0:width]
        pixels += (20 + 9 * (seed % 10)) * (np.hypot(y - 45, x - 30 - seed % 50) < 9)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_tiny_bundle(folder: Path, size: int = TINY_SIZE, precision: str = "fp32", **options: object) -> Path:
    """Write a complete bundle of a few nodes into `folder`: calibrated, golden, self-consistent."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    artifact = folder.parent / f".{folder.name}.onnx"
    write_tiny_onnx(artifact, size, with_score=bool(options.get("score_output", True)))
    runtime = OnnxRuntime(artifact, threads=1)
    normal = [runtime.run(load(tiny_image(seed), size)) for seed in range(30)]
    decision_threshold = calibrate([score for _, score in normal], [float(np.median(m)) for m, _ in normal], 0.05)
    set_metadata(artifact, metadata_entries(decision_threshold, size))
    candidates = []
    for seed in range(100, 110):
        for defect in (False, True):
            image = tiny_image(seed, defect)
            tensor = load(image, size)
            name = f"{'spot' if defect else 'good'}-{seed}"
            candidates.append(GoldenCandidate(name, image, defect, tensor, *runtime.run(tensor)))
    golden = fit_golden(select_golden(candidates, decision_threshold.value), runtime.run)
    outputs = [runtime.run(candidate.tensor) for candidate in golden]
    parity, _ = compare(golden, outputs, decision_threshold.value, decision_threshold.delta)
    fields: dict = {
        "target": "cpu",
        "runtime": "onnxruntime",
        "precision": precision,
        "decision_threshold": decision_threshold,
        "parity": parity,
        "provenance": {"recipe": "tiny", "seed": 0},
        "tool_versions": {"stlm-edge": "0.1.0"},
        "parameters": 0,
        "flops": None,
        "parity_loss_allowed": False,
    }
    write_bundle(folder, artifact, golden, **(fields | options))
    artifact.unlink()
    return folder
