"""Conversion to a TensorRT engine with Torch-TensorRT, for this machine's GPU only: `--via torch-tensorrt`.

Written from the documentation of version 2.14 (docs.pytorch.org/TensorRT: serialized engines, autocast); it has never
run. Torch-TensorRT chooses by its own rules which operators are float16; the gate runs the engine itself.
"""

from pathlib import Path

import torch

from stlm_edge.converters.export_form import export_form
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import replacing
from stlm_edge.model import STLM


def to_engine(model: STLM, path: Path, precision: str) -> None:
    """Write an engine for images uint8 1×S×S×3 in fp16 or fp32. Raises UsageError without Torch-TensorRT or a GPU."""
    try:
        import torch_tensorrt
    except ImportError as error:
        raise UsageError(
            f"torch_tensorrt cannot be imported ({error}); --via torch-tensorrt needs an NVIDIA GPU and: "
            "pip install torch-tensorrt"
        ) from None
    if not torch.cuda.is_available():
        raise UsageError("--via torch-tensorrt: no CUDA GPU; run it on the machine that the engine is for")
    size = model.config.size
    image = torch.zeros(1, size, size, 3, dtype=torch.uint8, device="cuda")
    autocast = {"enable_autocast": True, "autocast_low_precision_type": torch.float16} if precision == "fp16" else {}
    with torch.no_grad():
        program = torch.export.export(export_form(model).cuda(), (image,))
        try:
            engine = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                program, arg_inputs=(image,), **autocast
            )
        except Exception as error:  # whatever the converters, TensorRT or CUDA raise
            reason = " ".join(str(error).split())[:200]
            raise JobError(f"Torch-TensorRT {torch_tensorrt.__version__} cannot build the engine: {reason}") from None
    with replacing(path) as temporary:
        temporary.write_bytes(engine)
