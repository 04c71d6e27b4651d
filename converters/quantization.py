"""int8 for the linear layers of an ONNX file; what must stay in float stays in float, and takes half the room.

Weights are symmetric int8, one scale per output channel. Activations are quantized dynamically: each picture's own
range is found as it passes, so there are no ranges to calibrate and none that an anomaly could leave; the calibration
pictures rank the layers by their damage (`sensitivity.py`), and the export moves the worst to float until its gate
holds. Weights have 7 bits: where a processor lacks VNNI, pairs of u8×s8 products saturate in 16 bits without a word.

Convolutions are computed in float. Their weights are stored in float16, but for the first ones, in whose weights a
rounding shows in the map; attention biases are stored as tables that are gathered, 5×196 values instead of 5×196×196.
onnxruntime undoes both as it loads the file.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from stlm_edge.converters.onnx import quiet, save
from stlm_edge.manifest import Calibration
from stlm_edge.model import STLM

LAYERS = ["Gemm", "MatMul"]
IN_FLOAT32 = r"/(patch_embed|stage0)/"
SMALL = 4096  # values; what is smaller stays as it is
TABLE = 256  # columns


def to_int8(model: STLM, source: Path, path: Path, calibration: Calibration, in_float: Sequence[str] = ()) -> None:
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
    save(quantized, path, calibration, model.config.size)


def shrink(graph: onnx.GraphProto) -> None:
    """Store large float weights as float16, and those of few distinct columns as tables, with what undoes it."""
    users: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node.name)
    undone: list[onnx.NodeProto] = []
    places_of: dict[tuple[tuple[int, ...], bytes], str] = {}
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        in_float32 = any(re.search(IN_FLOAT32, user) for user in users.get(weight.name, []))
        if values.dtype != np.float32 or values.size <= SMALL or in_float32:
            continue
        name, nodes, parts = weight.name, [], {}
        if values.ndim == 3:
            columns = values.reshape(len(values), -1)
            table, first, places = np.unique(columns, axis=1, return_index=True, return_inverse=True)
            order = first.argsort()  # of appearance, so that windows of one size share their places
            table, places = table[:, order], order.argsort()[places.ravel()]
            if table.shape[1] <= TABLE:
                places = places.reshape(values.shape[1:]).astype(np.uint8)
                where = places_of.setdefault((places.shape, places.tobytes()), f"{name}_places")
                parts = {f"{name}_table": table} | ({where: places} if where == f"{name}_places" else {})
                nodes = [
                    helper.make_node("Cast", [where], [f"{name}_index"], f"{name}/Cast", to=TensorProto.INT32),
                    helper.make_node("Gather", [f"{name}_table", f"{name}_index"], [name], f"{name}/Gather", axis=1),
                ]
        if not nodes and np.abs(values).max() < 65504:
            parts = {f"{name}_float16": values.astype(np.float16)}
            nodes = [helper.make_node("Cast", [*parts], [name], f"{name}/Cast", to=TensorProto.FLOAT)]
        if nodes:
            graph.initializer.remove(weight)
            graph.initializer.extend(numpy_helper.from_array(part, key) for key, part in parts.items())
            undone += nodes
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*undone, *kept])
