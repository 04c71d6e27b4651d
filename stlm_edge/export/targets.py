"""Targets: device classes and their artifacts, one row each."""

from dataclasses import dataclass
from typing import Literal

from stlm_edge.errors import UsageError


@dataclass(frozen=True)
class Target:
    """A device class and the artifact for it."""

    name: str
    artifact: str  # its suffix gives the format
    runtime: str  # which the artifact is for
    precisions: tuple[str, ...]  # the default one first
    input_dtype: Literal["uint8", "float32"] = "uint8"  # of the graph's input
    score_output: bool = True  # the graph computes the score; else the runtime takes it from the map
    exports_all: bool = False  # without a given precision, an export writes a bundle of each
    via: str | None = None  # name of the converter, if it is not the default one of the device class


TARGETS = (
    Target("cpu", "model.onnx", "onnxruntime", ("int8", "fp32")),
    Target("cpu", "model.openvino", "openvino", ("int8", "fp16", "fp32"), via="openvino"),
    Target("jetson", "model.onnx", "tensorrt", ("fp16", "int8", "fp32")),
    Target("desktop-gpu", "model.onnx", "tensorrt", ("fp16", "int8", "fp32")),
    Target("desktop-gpu", "model.engine", "tensorrt", ("fp16", "fp32"), via="torch-tensorrt"),
    Target("android", "model.tflite", "litert", ("int8", "fp16", "fp32"), input_dtype="float32", score_output=False),
    Target("ios", "model.mlpackage", "coreml", ("fp16", "int8", "palette6")),
    Target(
        "web",
        "model.onnx",
        "onnxruntime-web",
        ("fp16", "int8"),
        input_dtype="float32",
        score_output=False,
        exports_all=True,
    ),
)

BUDGET_SIZE = 224
LARGEST_MB = {"fp16": 39, "int8": 22, "palette6": 22}  # of the full network's artifact at that input size


def find(name: str, precision: str | None = None, via: str | None = None) -> tuple[Target, str]:
    """Return the target of this name and converter, and the precision, by default the first of the target.

    Raises UsageError for an unknown target or converter, or a precision that the target does not have.
    """
    rows = {target.via: target for target in TARGETS if target.name == name}
    if not rows:
        raise UsageError(f"target {name}: unknown, expected {', '.join(dict.fromkeys(row.name for row in TARGETS))}")
    if via not in rows:
        others = ", ".join(key for key in rows if key) or "no --via"
        raise UsageError(f"target {name}: --via {via} is not supported, expected {others}")
    target = rows[via]
    if precision is not None and precision not in target.precisions:
        raise UsageError(
            f"target {name}: precision {precision} is not supported, expected {', '.join(target.precisions)}"
        )
    return target, precision or target.precisions[0]
