"""From the trained network to an artifact: one row per way, one function per format.

Each function yields steps. The first ones are in fp32 and prove the conversion itself; then comes the precision that
was asked for, with ever more of the network in float, until the export's gate holds.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.model import STLM
from stlm_edge.progress import step
from stlm_edge.runtimes import Runtime, open_runtime
from stlm_edge.threshold import DecisionThreshold

KEPT = (1, 2, 4, 8, 16, 32)  # groups of layers in float, tried in turn
LINEAR_LAYERS = "linear layers"  # what is in int8
WITH_CONVOLUTIONS = "linear layers and the weights of convolutions but stage 0's"


@dataclass(frozen=True)
class Order:
    """What is to be converted, to which `artifact` (a path that doesn't exist yet, in a folder for this alone).

    `images` are the quantization set, normal and pseudo-anomalous, uint8 S×S×3 each.
    """

    model: STLM
    precision: str
    artifact: Path
    decision_threshold: DecisionThreshold
    provenance: dict[str, Any]
    images: Sequence[np.ndarray]

    def beside(self, name: str) -> Path:
        """A path for what comes before the artifact, with the artifact's suffix."""
        return self.artifact.with_name(name + self.artifact.suffix)


@dataclass(frozen=True)
class Step:
    """An artifact in some precision, all that can run it on this machine, and what a report should say of it.

    `kept`: what stayed in float because it was measured to need it, by the start of its name. `what`: what of the
    network is in that precision beside that.
    """

    precision: str
    artifact: Path
    checked_by: tuple[Callable[[Path], Runtime], ...]
    notes: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    what: str = "everything"


def _to_onnx(order: Order) -> Iterator[Step]:
    from stlm_edge.converters.onnx import to_onnx

    in_float = order.artifact if order.precision == "fp32" else order.beside("fp32")
    with step("converting to ONNX, which takes half a minute"):
        to_onnx(order.model, in_float, order.decision_threshold)
    yield Step("fp32", in_float, (_onnxruntime,))
    if order.precision == "int8":
        from stlm_edge.converters.quantization import to_int8
        from stlm_edge.converters.sensitivity import LINEAR

        for kept in _ever_more(order, LINEAR):
            with step("quantizing to int8"):
                to_int8(order.model, in_float, order.artifact, order.decision_threshold, kept)
            yield Step("int8", order.artifact, (_onnxruntime,), kept=kept, what=LINEAR_LAYERS)


def _ever_more(
    order: Order, groups: Sequence[str], inputs: bool = True, together: Sequence[str] = ()
) -> Iterator[tuple[str, ...]]:
    """What to keep in float: nothing, then ever more of the layers that int8 hurts most, by the start of their names.

    `groups` and `inputs` are those of `sensitivity.ranked`, which is asked when the first of them has to be known;
    the groups in `together` are kept before it is, all at once.
    """
    from stlm_edge.converters.sensitivity import grouped, ranked

    yield ()
    first = tuple(grouped(order.model, together))
    if first:
        yield first
    worst = [name for name, _ in ranked(order.model, order.images, groups, inputs)]
    for count in KEPT:
        yield first + tuple(worst[:count])


def _to_tflite(order: Order) -> Iterator[Step]:
    from stlm_edge.converters.litert import FP16, to_fp16, to_int8, to_tflite
    from stlm_edge.converters.sensitivity import CONVOLUTIONS, LINEAR

    in_float = order.artifact if order.precision == "fp32" else order.beside("fp32")
    with step("converting to TFLite, which takes a minute or two"):
        to_tflite(order.model, in_float, order.decision_threshold, order.provenance)
    yield Step("fp32", in_float, (_litert,))
    about = order.decision_threshold, order.model.config.size, order.provenance
    if order.precision == "fp16":
        for names, stages in zip(FP16, ("stage 0's", "those of stages 0 and 1"), strict=True):
            with step("writing the weights in fp16"):
                to_fp16(in_float, order.artifact, *about, names)
            yield Step("fp16", order.artifact, (_litert,), what=f"weights but {stages}")
    if order.precision == "int8":
        for kept in _ever_more(order, LINEAR + CONVOLUTIONS):
            with step("quantizing to int8"):
                to_int8(in_float, order.artifact, *about, kept)
            yield Step("int8", order.artifact, (_litert,), kept=kept, what=WITH_CONVOLUTIONS)


def _to_coreml(order: Order) -> Iterator[Step]:
    from stlm_edge.converters.coreml import IN_FLOAT32, to_coreml
    from stlm_edge.converters.sensitivity import CONVOLUTIONS, FIRST_CONVOLUTIONS, LINEAR

    with step("converting to Core ML, which takes a minute"):
        to_coreml(order.model, order.beside("fp32"), order.decision_threshold, "fp32")
    yield Step("fp32", order.beside("fp32"), (_coreml,))
    tries: Iterator[tuple[tuple[str, ...], tuple[str, ...]]] = ((in_float32, ()) for in_float32 in IN_FLOAT32)
    if order.precision in ("int8", "palette6"):
        more = _ever_more(order, LINEAR + CONVOLUTIONS + FIRST_CONVOLUTIONS, inputs=False)
        tries = itertools.chain([(IN_FLOAT32[0], ())], ((IN_FLOAT32[-1], kept) for kept in more))
    for in_float32, kept in tries:
        shutil.rmtree(order.artifact, ignore_errors=True)
        with step(f"converting to Core ML in {order.precision}, which takes a minute or two"):
            to_coreml(order.model, order.artifact, order.decision_threshold, order.precision, in_float32, kept)
        notes = (f"computed in float32: {', '.join(in_float32)}",) if in_float32 else ()
        but = "norms and the map's end" if in_float32 else "the map's end"
        what = f"everything but {but}" if order.precision == "fp16" else f"weights, computed in fp16 but for {but}"
        yield Step(order.precision, order.artifact, (_coreml, _without_subnormals), notes, kept, what)


def _to_openvino(order: Order) -> Iterator[Step]:
    from stlm_edge.converters.onnx import to_onnx
    from stlm_edge.converters.openvino import to_int8, to_openvino
    from stlm_edge.converters.sensitivity import CONVOLUTIONS, LINEAR

    source, about = order.artifact.with_name("source.onnx"), (order.decision_threshold, order.model.config.size)
    with step("converting to ONNX, which takes half a minute"):
        to_onnx(order.model, source, order.decision_threshold)
    in_float = order.artifact if order.precision == "fp32" else order.beside("fp32")
    with step("converting to OpenVINO's IR"):
        to_openvino(source, in_float, *about)
    yield Step("fp32", in_float, (_openvino,))
    if order.precision == "fp16":
        with step("writing the weights in fp16"):
            to_openvino(source, order.artifact, *about, half=True)
        yield Step("fp16", order.artifact, (_openvino,), what="weights but stage 0's")
    if order.precision == "int8":
        for kept in _ever_more(order, LINEAR, together=CONVOLUTIONS):  # whose weights are half of the score's error
            with step("quantizing to int8"):
                to_int8(source, order.artifact, *about, order.images, kept)
            yield Step("int8", order.artifact, (_openvino,), kept=kept, what=WITH_CONVOLUTIONS)


def _to_tensorrt(order: Order) -> Iterator[Step]:
    from stlm_edge.converters import tensorrt
    from stlm_edge.converters.fp16_islands import describe, islands
    from stlm_edge.converters.onnx import to_onnx
    from stlm_edge.converters.qdq import reach_of
    from stlm_edge.runtimes.tensorrt import trtexec_line

    untyped = order.beside("untyped")
    with step("converting to ONNX, which takes half a minute"):
        to_onnx(order.model, untyped, order.decision_threshold)
    notes = ("no engine was built here: TensorRT builds it on the device", f"without Python there: {trtexec_line()}")
    graph = tensorrt.read(untyped)
    in_float = order.artifact if order.precision == "fp32" else order.beside("fp32")
    tensorrt.to_fp32(graph, in_float, order.decision_threshold)
    yield Step("fp32", in_float, (_onnxruntime,), notes)
    if order.precision == "fp16":
        for kept in islands(graph, order.images):
            tensorrt.to_fp16(graph, order.artifact, order.decision_threshold, kept)
            yield _in_half(order, kept, (*notes, *describe(kept)))
    if order.precision == "int8":
        with step("measuring the activations' ranges"):
            reach = reach_of(graph, order.images)
        for in_float32, kept in _islands_then_layers(order, graph):
            with step("quantizing to int8"):
                tensorrt.to_int8(graph, order.artifact, order.decision_threshold, in_float32, reach, kept)
            told = (*notes, *describe(in_float32))
            yield Step(
                "int8", order.artifact, (_in_fp16, _onnxruntime), told, _needed(in_float32) + kept, LINEAR_LAYERS
            )


def _islands_then_layers(order: Order, graph: Any) -> Iterator[tuple[list[Any], tuple[str, ...]]]:
    """Islands in float32 (`fp16_islands.Island`) and linear layers in float16, ever more of them, for an int8 file.

    After the hazards come the convolutions that the map needs most: what their float16 costs, no linear layer gives
    back.
    """
    from stlm_edge.converters.fp16_islands import islands
    from stlm_edge.converters.sensitivity import LINEAR

    in_float32 = islands(graph, order.images)
    yield next(in_float32), ()
    needed = next(in_float32)
    for kept in _ever_more(order, LINEAR):
        yield needed, kept


def _needed(found: Sequence[Any]) -> tuple[str, ...]:
    return tuple(island.node for island in found if island.moves is not None)


def _in_half(order: Order, found: Sequence[Any], notes: tuple[str, ...]) -> Step:
    """A step in fp16 but for these islands (`fp16_islands.Island`)."""
    kept = _needed(found)
    what = f"everything but {len(found) - len(kept)} operators at risk in fp16"
    return Step("fp16", order.artifact, (_in_fp16, _onnxruntime), notes, kept, what)


def _to_engine(order: Order) -> Iterator[Step]:
    from stlm_edge.converters.torch_tensorrt import to_engine

    with step("building the engine, which takes minutes"):
        to_engine(order.model, order.artifact, order.precision)
    yield Step(order.precision, order.artifact, (_tensorrt,), ("the engine runs on this machine's GPU only",))


def _to_browser(order: Order) -> Iterator[Step]:
    from stlm_edge.converters import webgpu
    from stlm_edge.converters.fp16_islands import describe, islands
    from stlm_edge.converters.onnx import to_onnx
    from stlm_edge.converters.quantization import to_int8
    from stlm_edge.converters.sensitivity import LINEAR

    untyped, in_float = order.beside("untyped"), order.beside("fp32")
    with step("converting to ONNX, which takes half a minute"):
        to_onnx(order.model, untyped, order.decision_threshold)
    graph = webgpu.to_browser(untyped, in_float, order.decision_threshold)
    yield Step("fp32", in_float, (_onnxruntime,))
    notes = ("run here by onnxruntime on a CPU; the page around it checks itself in the browser",)
    if order.precision == "fp16":
        for kept in islands(graph, order.images):
            webgpu.to_fp16(graph, order.artifact, order.decision_threshold, kept)
            yield _in_half(order, kept, (*notes, *describe(kept)))
    if order.precision == "int8":
        for weights in _ever_more(order, LINEAR):
            with step("quantizing to int8"):
                to_int8(order.model, in_float, order.artifact, order.decision_threshold, weights)
            yield Step("int8", order.artifact, (_onnxruntime,), notes, weights, LINEAR_LAYERS)


def _in_fp16(artifact: Path) -> Runtime:
    from stlm_edge.converters.fp16_simulation import Fp16Simulation

    return Fp16Simulation(artifact)


def _onnxruntime(artifact: Path) -> Runtime:
    return open_runtime("onnxruntime", artifact)


def _tensorrt(artifact: Path) -> Runtime:
    return open_runtime("tensorrt", artifact)


def _litert(artifact: Path) -> Runtime:
    return open_runtime("litert", artifact)


def _coreml(artifact: Path) -> Runtime:
    return open_runtime("coreml", artifact)


def _without_subnormals(artifact: Path) -> Runtime:
    from stlm_edge.runtimes.mil_evaluator import MilEvaluator, to_fp16_without_subnormals

    return MilEvaluator(artifact, rounded=to_fp16_without_subnormals)


def _openvino(artifact: Path) -> Runtime:
    return open_runtime("openvino", artifact)


@dataclass(frozen=True)
class Way:
    """How artifacts for a runtime are made: by a function, with these packages, whose versions the manifest names.

    `missing`: what to do where one isn't installed.
    """

    convert: Callable[[Order], Iterator[Step]]
    packages: tuple[str, ...]
    missing: str = 'pip install "stlm-edge[export]"'


_ONNX = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")
WAYS = {  # by the target's `via`, or else by the runtime that the artifact is for
    "onnxruntime": Way(_to_onnx, _ONNX),
    "tensorrt": Way(_to_tensorrt, _ONNX),
    "torch-tensorrt": Way(
        _to_engine,
        ("torch", "torch-tensorrt"),
        "--via torch-tensorrt needs an NVIDIA GPU and: pip install torch-tensorrt",
    ),
    "onnxruntime-web": Way(_to_browser, _ONNX),
    "openvino": Way(_to_openvino, ("torch", "onnx", "onnxscript", "onnxsim", "openvino", "nncf")),
    "litert": Way(_to_tflite, ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")),
    "coreml": Way(_to_coreml, ("torch", "coremltools")),
}
