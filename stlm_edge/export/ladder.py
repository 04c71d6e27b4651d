"""Conversions of the trained network, one function per format, listed in `CONVERSIONS`.

Each yields an artifact in fp32, which checks the conversion itself, and then the precision ladder: candidates in the
requested precision, each with more of the network in float than the one before, until one passes the gate.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.converters.sensitivity import CONVOLUTIONS, FIRST_CONVOLUTIONS, LINEAR, grouped, rank
from stlm_edge.model import STLM
from stlm_edge.progress import step
from stlm_edge.runtimes import Runtime, open_runtime
from stlm_edge.threshold import DecisionThreshold

KEPT = (1, 2, 4, 8, 16, 32)  # groups of layers in float, one number after the other
LINEAR_LAYERS = "linear layers"  # the scope of int8
WITH_CONVOLUTIONS = "linear layers and the weights of convolutions but stage 0's"
FP16_SIMULATION = "fp16 simulation"
NO_SUBNORMALS = "mil-evaluator, subnormals as 0"


@dataclass(frozen=True)
class ConversionRequest:
    """A network to convert, the artifact's path in a folder of its own, and the quantization set, uint8 S×S×3 each."""

    model: STLM
    precision: str
    path: Path
    decision_threshold: DecisionThreshold
    provenance: dict[str, Any]
    images: Sequence[np.ndarray]

    def beside(self, name: str) -> Path:
        """Return the path of an intermediate file, with the suffix of the artifact."""
        return self.path.with_name(name + self.path.suffix)

    @property
    def fp32_path(self) -> Path:
        """The path of the fp32 artifact, which is an intermediate file for a reduced precision."""
        return self.path if self.precision == "fp32" else self.beside("fp32")


@dataclass(frozen=True)
class Artifact:
    """A converted network, the names of what runs it on this machine (`open_checker`), and notes for the report.

    `scope` is the part of the network in this precision, except layers whose names begin with one of `kept_in_float`.
    """

    precision: str
    path: Path
    checked_by: tuple[str, ...]
    notes: tuple[str, ...] = ()
    kept_in_float: tuple[str, ...] = ()
    scope: str = "everything"


def open_checker(name: str, artifact: Path) -> Runtime:
    """Open an artifact in a runtime, or in a simulation of hardware that is not on this machine."""
    if name == FP16_SIMULATION:
        from stlm_edge.converters.fp16_simulation import Fp16Simulation

        return Fp16Simulation(artifact)
    if name == NO_SUBNORMALS:
        from stlm_edge.runtimes.mil_evaluator import MilEvaluator, to_fp16_without_subnormals

        return MilEvaluator(artifact, rounded=to_fp16_without_subnormals)
    return open_runtime(name, artifact)


def _to_onnx(request: ConversionRequest) -> Iterator[Artifact]:
    _write_onnx(request, request.fp32_path)
    yield Artifact("fp32", request.fp32_path, ("onnxruntime",))
    if request.precision == "int8":
        yield from _onnx_int8(request)


def _to_browser(request: ConversionRequest) -> Iterator[Artifact]:
    from stlm_edge.converters import web

    source = _write_onnx(request, request.beside("untyped"))
    graph = web.to_fp32(source, request.fp32_path, request.decision_threshold)
    yield Artifact("fp32", request.fp32_path, ("onnxruntime",))
    notes = ("run here by onnxruntime on a CPU; the page checks itself in the browser",)
    if request.precision == "fp16":
        yield from _onnx_fp16(request, graph, web.to_fp16, notes)
    if request.precision == "int8":
        yield from _onnx_int8(request, notes)


def _to_tensorrt(request: ConversionRequest) -> Iterator[Artifact]:
    from stlm_edge.bundle.engine import TRTEXEC
    from stlm_edge.converters import tensorrt
    from stlm_edge.converters.float32_operators import describe, float32_operators
    from stlm_edge.converters.tensorrt_int8 import activation_ranges

    graph = tensorrt.read(_write_onnx(request, request.beside("untyped")))
    notes = ("no engine was built here: TensorRT builds it on the device", f"without Python there: {TRTEXEC}")
    tensorrt.to_fp32(graph, request.fp32_path, request.decision_threshold)
    yield Artifact("fp32", request.fp32_path, ("onnxruntime",), notes)
    if request.precision == "fp16":
        yield from _onnx_fp16(request, graph, tensorrt.to_fp16, notes)
    if request.precision == "int8":
        with step("measuring the ranges of activations"):
            ranges = activation_ranges(graph, request.images)
        in_float32 = float32_operators(graph, request.images)
        for number, kept in enumerate(itertools.chain([()], _more_in_float(request, LINEAR))):
            if number < 2:  # convolutions in float32 come before linear layers in float16, which can't replace them
                kept_in_float32 = next(in_float32)
            with step("quantizing to int8"):
                tensorrt.to_int8(graph, request.path, request.decision_threshold, kept_in_float32, ranges, kept)
            all_notes = (*notes, *describe(kept_in_float32))
            kept = _measured(kept_in_float32) + kept
            yield Artifact("int8", request.path, (FP16_SIMULATION, "onnxruntime"), all_notes, kept, LINEAR_LAYERS)


def _write_onnx(request: ConversionRequest, path: Path) -> Path:
    from stlm_edge.converters.onnx import to_onnx

    with step("converting to ONNX, about half a minute"):
        to_onnx(request.model, path, request.decision_threshold)
    return path


def _onnx_int8(request: ConversionRequest, notes: tuple[str, ...] = ()) -> Iterator[Artifact]:
    from stlm_edge.converters.onnx_int8 import to_int8

    for kept in _more_in_float(request, LINEAR):
        with step("quantizing to int8"):
            to_int8(request.fp32_path, request.path, request.decision_threshold, kept)
        yield Artifact("int8", request.path, ("onnxruntime",), notes, kept, LINEAR_LAYERS)


def _onnx_fp16(
    request: ConversionRequest, graph: Any, to_fp16: Callable[..., None], notes: tuple[str, ...]
) -> Iterator[Artifact]:
    """Yield typed files in fp16 with more and more operators in float32."""
    from stlm_edge.converters.float32_operators import describe, float32_operators

    for kept in float32_operators(graph, request.images):
        to_fp16(graph, request.path, request.decision_threshold, kept)
        needed = _measured(kept)
        scope = f"everything but {len(kept) - len(needed)} operators at risk in fp16"
        all_notes = (*notes, *describe(kept))
        yield Artifact("fp16", request.path, (FP16_SIMULATION, "onnxruntime"), all_notes, needed, scope)


def _measured(kept: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of the operators that the map was measured to need."""
    return tuple(operator.node for operator in kept if operator.map_change is not None)


def _more_in_float(
    request: ConversionRequest, groups: Sequence[str], inputs: bool = True, together: Sequence[str] = ()
) -> Iterator[tuple[str, ...]]:
    """Yield the layers to keep in float, by the start of their names: none, all of `together`, ever more of the others.

    `groups` and `inputs` are arguments of `sensitivity.rank`, which runs when its result is needed.
    """
    yield ()
    first = tuple(grouped(request.model, together))
    if first:
        yield first
    most_sensitive = [name for name, _ in rank(request.model, request.images, groups, inputs)]
    for count in KEPT:
        yield first + tuple(most_sensitive[:count])


def _to_tflite(request: ConversionRequest) -> Iterator[Artifact]:
    from stlm_edge.converters.tflite import FP16, to_fp16, to_int8, to_tflite

    with step("converting to TFLite, one or two minutes"):
        to_tflite(request.model, request.fp32_path, request.decision_threshold, request.provenance)
    yield Artifact("fp32", request.fp32_path, ("litert",))
    if request.precision == "fp16":
        for layers, stages in zip(FP16, ("stage 0's", "those of stages 0 and 1"), strict=True):
            with step("writing the weights in fp16"):
                to_fp16(request.fp32_path, request.path, layers)
            yield Artifact("fp16", request.path, ("litert",), scope=f"weights but {stages}")
    if request.precision == "int8":
        for kept in _more_in_float(request, LINEAR + CONVOLUTIONS):
            with step("quantizing to int8"):
                to_int8(request.fp32_path, request.path, kept)
            yield Artifact("int8", request.path, ("litert",), (), kept, WITH_CONVOLUTIONS)


def _to_openvino(request: ConversionRequest) -> Iterator[Artifact]:
    from stlm_edge.converters.openvino import to_int8, to_openvino

    source = _write_onnx(request, request.path.with_name("source.onnx"))
    threshold = request.decision_threshold
    with step("converting to OpenVINO's IR"):
        to_openvino(source, request.fp32_path, threshold)
    yield Artifact("fp32", request.fp32_path, ("openvino",))
    if request.precision == "fp16":
        with step("writing the weights in fp16"):
            to_openvino(source, request.path, threshold, half=True)
        yield Artifact("fp16", request.path, ("openvino",), scope="weights but stage 0's")
    if request.precision == "int8":
        # The weights of convolutions, half of the score's error, return to float first, all at once.
        for kept in _more_in_float(request, LINEAR, together=CONVOLUTIONS):
            with step("quantizing to int8"):
                to_int8(source, request.path, threshold, request.images, kept)
            yield Artifact("int8", request.path, ("openvino",), (), kept, WITH_CONVOLUTIONS)


def _to_coreml(request: ConversionRequest) -> Iterator[Artifact]:
    from stlm_edge.converters.coreml import IN_FLOAT32, to_coreml

    weights = LINEAR + CONVOLUTIONS + FIRST_CONVOLUTIONS
    with step("converting to Core ML, about a minute"):
        to_coreml(request.model, request.beside("fp32"), request.decision_threshold, "fp32")
    yield Artifact("fp32", request.beside("fp32"), ("coreml",))
    more = [()] if request.precision == "fp16" else _more_in_float(request, weights, inputs=False)
    for number, kept in enumerate(itertools.chain([()], more)):
        in_float32 = IN_FLOAT32[min(number, 1)]
        shutil.rmtree(request.path, ignore_errors=True)
        with step(f"converting to Core ML in {request.precision}, one or two minutes"):
            to_coreml(request.model, request.path, request.decision_threshold, request.precision, in_float32, kept)
        notes = (f"computed in float32: {', '.join(in_float32)}",) if in_float32 else ()
        but = "norms and the map's end" if in_float32 else "the map's end"
        scope = f"everything but {but}" if request.precision == "fp16" else f"weights, computed in fp16 but for {but}"
        yield Artifact(request.precision, request.path, ("coreml", NO_SUBNORMALS), notes, kept, scope)


def _to_engine(request: ConversionRequest) -> Iterator[Artifact]:
    from stlm_edge.converters.torch_tensorrt import to_engine

    with step("building the engine, some minutes"):
        to_engine(request.model, request.path, request.precision)
    yield Artifact(request.precision, request.path, ("tensorrt",), ("the engine runs on this machine's GPU only",))


@dataclass(frozen=True)
class Conversion:
    """A function that converts, and the packages it needs: `missing` says what to do if one is not installed."""

    convert: Callable[[ConversionRequest], Iterator[Artifact]]
    packages: tuple[str, ...]
    missing: str = 'pip install "stlm-edge[export]"'


_ONNX = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")
CONVERSIONS = {  # by the target's `via`, or else by the runtime that the artifact is for
    "onnxruntime": Conversion(_to_onnx, _ONNX),
    "onnxruntime-web": Conversion(_to_browser, _ONNX),
    "tensorrt": Conversion(_to_tensorrt, _ONNX),
    "torch-tensorrt": Conversion(
        _to_engine,
        ("torch", "torch-tensorrt"),
        "--via torch-tensorrt needs an NVIDIA GPU and: pip install torch-tensorrt",
    ),
    "openvino": Conversion(_to_openvino, ("torch", "onnx", "onnxscript", "onnxsim", "openvino", "nncf")),
    "litert": Conversion(_to_tflite, ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")),
    "coreml": Conversion(_to_coreml, ("torch", "coremltools")),
}
