"""Targets: a device class and the artifact that suits it, one row each."""

from dataclasses import dataclass

from stlm_edge.errors import UsageError


@dataclass(frozen=True)
class Target:
    """`precisions`: the first is the default. `missing` is what a target that isn't built yet still lacks."""

    name: str
    artifact: str
    runtime: str
    precisions: tuple[str, ...]
    missing: str | None = None


TARGETS = {
    row.name: row
    for row in (
        Target("cpu", "model.onnx", "onnxruntime", ("int8", "fp32")),
        Target("jetson", "model.onnx", "tensorrt", ("fp16", "int8", "fp32"), "the typed ONNX and the TensorRT engine"),
        Target(
            "desktop-gpu", "model.onnx", "tensorrt", ("fp16", "int8", "fp32"), "the typed ONNX and the TensorRT engine"
        ),
        Target("android", "model.tflite", "litert", ("int8", "fp16", "fp32"), "the TFLite converter"),
        Target("ios", "model.mlpackage", "coreml", ("fp16", "int8"), "the Core ML converter"),
        Target("web", "model.onnx", "onnxruntime-web", ("fp16", "int8"), "the ONNX files for WebGPU and WebAssembly"),
    )
}


def find(name: str, precision: str | None = None) -> tuple[Target, str]:
    """The row of a target and the precision to use. Raises UsageError: unknown, not built yet, or without it."""
    target = TARGETS.get(name)
    if target is None:
        raise UsageError(f"target {name}: unknown; expected one of {', '.join(TARGETS)}")
    if target.missing:
        built = ", ".join(row.name for row in TARGETS.values() if not row.missing)
        raise UsageError(f"target {name}: not built yet, {target.missing} is missing; this release exports {built}")
    if precision is not None and precision not in target.precisions:
        raise UsageError(f"target {name}: no precision {precision}; it has {', '.join(target.precisions)}")
    return target, precision or target.precisions[0]
