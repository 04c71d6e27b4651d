"""int8 for the linear layers of an ONNX file; what must stay in float stays in float, and takes half the room.

Weights are symmetric int8, one scale per output channel. Activations are quantized dynamically: each image's own
range is found as it passes, so there are no ranges to calibrate and none that an anomaly could leave; the calibration
images rank the layers by their damage (`sensitivity.py`), and the export moves the worst to float until its gate
holds. Weights have 7 bits: where a processor lacks VNNI, pairs of u8×s8 products saturate in 16 bits without a word.

Convolutions are computed in float (benchmarks/results, `convolutions.json`). Their weights are stored in float16, but
for the first ones, in whose weights a rounding shows in the map; attention biases are stored as tables that are
gathered, 5×196 values instead of 5×196×196. onnxruntime undoes both as it loads the file.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from stlm_edge.converters.onnx import quiet, save
from stlm_edge.model import STLM
from stlm_edge.threshold import DecisionThreshold

LAYERS = ["Gemm", "MatMul"]
IN_FLOAT32 = r"/(patch_embed|stage0)/"
SMALL = 4096  # values; what is smaller stays as it is
TABLE = 256  # columns


def to_int8(
    model: STLM, source: Path, path: Path, decision_threshold: DecisionThreshold, in_float: Sequence[str] = ()
) -> None:
    """Quantize `source`, the ONNX file that `to_onnx` made of `model`, into `path`. Raises JobError like `to_onnx`.

    `in_float`: linear layers whose names begin with one of these stay in float.
    """
    graph = onnx.load(source).graph
    matrices = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    products = [node for node in graph.node if node.op_type in LAYERS]
    kept = [
        node.name for node in products if node.input[1].startswith(tuple(in_float)) or node.input[1] not in matrices
    ]
    with quiet():
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=LAYERS,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept + [f"{name}_MatMul" for name in kept],  # a Gemm becomes MatMul and Add first
        )
    quantized = onnx.load(path)
    shrink(quantized.graph)
    save(quantized, path, decision_threshold, model.config.size)


def shrink(graph: onnx.GraphProto) -> None:
    """Store large float weights as float16, and those of few distinct columns as tables, with what undoes it."""
    users: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node.name)
    into_tables(graph, np.uint8)
    undone = []
    for weight in list(graph.initializer):
        values, name = numpy_helper.to_array(weight), weight.name
        in_float32 = any(re.search(IN_FLOAT32, user) for user in users.get(name, []))
        if values.dtype != np.float32 or values.size <= SMALL or in_float32 or np.abs(values).max() >= 65504:
            continue
        graph.initializer.remove(weight)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), f"{name}_float16"))
        undone.append(helper.make_node("Cast", [f"{name}_float16"], [name], f"{name}/Cast", to=TensorProto.FLOAT))
    _put_first(graph, undone)


def into_tables(graph: onnx.GraphProto, kind: type[np.integer] = np.int32) -> None:
    """Store attention biases, heads×tokens×tokens of few distinct columns, as tables and where their columns go.

    Those places are of this kind; what is not int32 is cast to it, which not every runtime can do.
    """
    gathers = []
    named: dict[tuple[tuple[int, ...], bytes], str] = {}
    for weight in list(graph.initializer):
        values, name = numpy_helper.to_array(weight), weight.name
        if values.dtype != np.float32 or values.ndim != 3 or values.size <= SMALL:
            continue
        columns = values.reshape(len(values), -1)
        table, first, places = np.unique(columns, axis=1, return_index=True, return_inverse=True)
        if table.shape[1] > TABLE:
            continue
        order = first.argsort()  # of appearance, so that windows of one size share their places
        places = order.argsort()[places.ravel()].reshape(values.shape[1:]).astype(kind)
        key = places.shape, places.tobytes()
        if key not in named:
            named[key] = f"{name}_places"
            graph.initializer.append(numpy_helper.from_array(places, named[key]))
            if kind != np.int32:
                index = f"{name}_index"
                gathers.append(helper.make_node("Cast", [named[key]], [index], f"{name}/Cast", to=TensorProto.INT32))
                named[key] = index
        graph.initializer.remove(weight)
        graph.initializer.append(numpy_helper.from_array(table[:, order], f"{name}_table"))
        gathers.append(helper.make_node("Gather", [f"{name}_table", named[key]], [name], f"{name}/Gather", axis=1))
    _put_first(graph, gathers)


def _put_first(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    following = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *following])
