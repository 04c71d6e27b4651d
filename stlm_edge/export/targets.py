"""Targets: a device class and the artifact that suits it, one row each."""

from dataclasses import dataclass
from typing import Literal

from stlm_edge.errors import UsageError


@dataclass(frozen=True)
class Target:
    """A device class. `precisions` begins with the default.

    `input_dtype` is the graph's; `score_output` whether it computes the score too (else it is taken from the map).
    `via`: the converter that has to be asked for by name, where the row isn't the device class's first.
    With `exports_all`, an export that names no precision makes a bundle of each.
    """

    name: str
    artifact: str
    runtime: str
    precisions: tuple[str, ...]
    input_dtype: Literal["uint8", "float32"] = "uint8"
    score_output: bool = True
    exports_all: bool = False
    via: str | None = None


TARGETS = (
    Target("cpu", "model.onnx", "onnxruntime", ("int8", "fp32")),
    Target("cpu", "model.openvino", "openvino", ("int8", "fp16", "fp32"), via="openvino"),
    Target("jetson", "model.onnx", "tensorrt", ("fp16", "int8", "fp32")),
    Target("desktop-gpu", "model.onnx", "tensorrt", ("fp16", "int8", "fp32")),
    Target("desktop-gpu", "model.engine", "tensorrt", ("fp16", "fp32"), via="torch-tensorrt"),
    Target(
        "android",
        "model.tflite",
        "litert",
        ("int8", "fp16", "fp32"),
        input_dtype="float32",
        score_output=False,
    ),
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
LARGEST_MB = {"fp16": 39, "int8": 22, "palette6": 22}  # of the full network's artifact at that S, by precision


def find(name: str, precision: str | None = None, via: str | None = None) -> tuple[Target, str]:
    """The target of this name and converter, and the precision, the target's default where none is given.

    Raises UsageError for an unknown target or converter, and a precision that it lacks.
    """
    rows = {target.via: target for target in TARGETS if target.name == name}
    if not rows:
        raise UsageError(f"target {name}: unknown; there are {', '.join(dict.fromkeys(row.name for row in TARGETS))}")
    if via not in rows:
        others = ", ".join(key for key in rows if key) or "none: leave --via out"
        raise UsageError(f"target {name}: --via {via} is not among those it has: {others}")
    target = rows[via]
    if precision is not None and precision not in target.precisions:
        raise UsageError(
            f"target {name}: precision {precision} is not among those it has: {', '.join(target.precisions)}"
        )
    return target, precision or target.precisions[0]
