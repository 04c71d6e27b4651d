"""int8 for the linear layers of an ONNX file for onnxruntime; everything else stays in float and takes less space.

Weights are symmetric int8 with one scale per output channel, in 7 bits: on processors without VNNI, pairs of u8×s8
products silently saturate in 16 bits. Activations have the range of each image. Convolutions are computed in float, as
int8 ones are no faster (benchmarks/results, `convolutions.json`). onnxruntime restores floats when it loads the file.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from stlm_edge.converters import quiet
from stlm_edge.converters.onnx import FIRST_STAGE, save
from stlm_edge.converters.onnx_graph import LARGE, gather_from_tables, replace_nodes, users_of, weights_of
from stlm_edge.threshold import DecisionThreshold

LINEAR = ["Gemm", "MatMul"]


def to_int8(source: Path, path: Path, threshold: DecisionThreshold, in_float: Sequence[str] = ()) -> None:
    """Quantize the ONNX file of `to_onnx`, and raise JobError like it.

    Linear layers whose names begin with one of `in_float` stay in float.
    """
    graph = onnx.load(source).graph
    weights = weights_of(graph)
    kept = [
        node.name
        for node in graph.node
        if node.op_type in LINEAR
        and (node.input[1].startswith(tuple(in_float)) or len(weights.get(node.input[1], TensorProto()).dims) != 2)
    ]
    with quiet():
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=LINEAR,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept + [f"{name}_MatMul" for name in kept],  # a Gemm becomes MatMul and Add first
        )
    quantized = onnx.load(path)
    shrink(quantized.graph)
    save(quantized, path, threshold)


def shrink(graph: onnx.GraphProto) -> None:
    """Store large float weights as float16 with a Cast, and attention biases as tables, in place."""
    gather_from_tables(graph, np.uint8)
    users = users_of(graph)
    casts = []
    for weight in list(graph.initializer):
        values, name = numpy_helper.to_array(weight), weight.name
        in_float32 = any(re.search(FIRST_STAGE, user.name) for user in users.get(name, []))
        if values.dtype != np.float32 or values.size <= LARGE or in_float32 or np.abs(values).max() >= 65504:
            continue
        graph.initializer.remove(weight)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), f"{name}_float16"))
        casts.append(helper.make_node("Cast", [f"{name}_float16"], [name], f"{name}/Cast", to=TensorProto.FLOAT))
    replace_nodes(graph, [*casts, *graph.node])
