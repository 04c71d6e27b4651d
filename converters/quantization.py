"""int8 ONNX from the float32 file: the linear layers' weights and inputs in 8 bits, all else as it was.

Inputs are quantized dynamically, by the range of the very tensor that arrives, so that no calibration picture decides
what an anomaly may look like. Convolutions stay in float32: the ranges of the encoders' activations break the map
(measured: cosine .95 with them, .9999 without).
"""

import tempfile
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from stlm_edge.converters.onnx import quiet, save

from stlm_edge.manifest import Calibration


def to_int8(fp32: Path, path: Path, calibration: Calibration, size: int) -> None:
    """Quantize the MatMul and Gemm nodes of `fp32` and write the result to `path`."""
    import onnx

    with quiet(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        quantized = Path(folder) / "quantized.onnx"
        quantize_dynamic(
            fp32,
            quantized,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        save(onnx.load(quantized), path, calibration, size)
