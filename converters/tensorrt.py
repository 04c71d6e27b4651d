"""Strongly typed ONNX for TensorRT: the file's types, and no builder's flag, say what is computed in which precision.

fp16: float16 but for islands of float32 (`fp16_islands.py`), each told with its reason. int8: the same, and linear
layers quantized explicitly (`qdq.py`). fp32: the graph as it is. All: opset 20, static shapes, uint8 cast before all
else, the threshold in the metadata, `tensorrt_rules.check` passed.

TensorRT itself is not needed, and has not been run on these files where this was written. Sums: of a matrix product of
float16 it guarantees an accumulator of no less range than the operands, nothing more ("Precision Control"), so the
simulation sums in float16, the worst that this allows. On trained networks float16 sums move the map by a tenth of what
rounding FA's tensors does: hence FA's layers are what is kept in float32 where the gate doesn't hold.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx

from stlm_edge.converters.fp16_islands import Island
from stlm_edge.converters.onnx import save
from stlm_edge.converters.qdq import quantize
from stlm_edge.converters.quantization import into_tables
from stlm_edge.converters.tensorrt_rules import check
from stlm_edge.converters.typed_onnx import cast_first, typed
from stlm_edge.errors import JobError
from stlm_edge.threshold import DecisionThreshold


def read(source: Path) -> onnx.ModelProto:
    """The float32 file that `to_onnx` wrote, as TensorRT reads its image."""
    return cast_first(onnx.load(source))


def to_fp32(proto: onnx.ModelProto, path: Path, decision_threshold: DecisionThreshold) -> None:
    """Write the graph as it is. Raises JobError when it breaks a rule of TensorRT's."""
    _save(proto, path, decision_threshold, "fp32")


def to_fp16(
    proto: onnx.ModelProto, path: Path, decision_threshold: DecisionThreshold, islands: Sequence[Island]
) -> None:
    """Write the graph in float16 but for `islands`. Raises JobError when it breaks a rule of TensorRT's."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    into_tables(copy.graph)
    typed(copy, {island.node for island in islands})
    _save(copy, path, decision_threshold, "fp16")


def to_int8(
    proto: onnx.ModelProto,
    path: Path,
    decision_threshold: DecisionThreshold,
    islands: Sequence[Island],
    reach: dict[str, float],
    in_float: Sequence[str] = (),
) -> None:
    """Write the graph with int8 linear layers, the rest as `to_fp16` does. Raises JobError likewise.

    `reach`: the activations' ranges, as `qdq.reach_of` finds them. `in_float`: linear layers whose names begin with one
    of these stay in float16.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    within = {island.node for island in islands}
    quantize(copy, reach, in_float, within)
    into_tables(copy.graph)
    typed(copy, within)
    _save(copy, path, decision_threshold, "int8")


def _save(proto: onnx.ModelProto, path: Path, decision_threshold: DecisionThreshold, precision: str) -> None:
    if problems := check(proto):
        raise JobError(f"the {precision} file breaks TensorRT's rules: {'; '.join(problems[:3])}; report this")
    save(proto, path, decision_threshold, proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value)
