"""The generic start: one encoder and the decoder, distilled on varied pictures, that both streams begin from.

Minutes of training cannot teach an encoder to copy the teacher on what it has never seen, and a plain stream that
doesn't is blind to defects. The shipped file holds the weights (matrices in float16), and the per-channel deviations
of the teacher's features that they were distilled with: a training that begins here keeps those.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stlm_edge.errors import UsageError
from stlm_edge.files import replacing
from stlm_edge.model import STLM
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0

KEY = "stlm_edge_start"
FORMAT_VERSION = 1
SHIPPED = Path(__file__).parent / "weights" / "generic_start.safetensors"
PARTS = ("plain.", "mask_decoder.", "prompt_encoder.")


def save(path: Path, model: STLM, teacher: EfficientNetLite0, card: dict[str, Any]) -> None:
    """Write a start; `card` says what it was distilled on."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(PARTS)}
    tensors |= {"teacher.std_1": teacher.std_1, "teacher.std_2": teacher.std_2}
    packed = {name: _packed(tensor.detach().cpu()) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(packed, temporary, {KEY: json.dumps({"format_version": FORMAT_VERSION, **card})})
        temporary.chmod(0o644)  # safetensors leaves it readable by its owner alone


def load(path: Path, model: STLM, teacher: EfficientNetLite0) -> dict[str, Any]:
    """Fill the plain encoder, the decoder and the teacher's deviations; returns the card.

    Raises UsageError: not a start, truncated, of another version, network or teacher.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(PARTS)}
    expected |= {"teacher.std_1": teacher.std_1, "teacher.std_2": teacher.std_2}
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {}).get(KEY, "null"))
            if not isinstance(card, dict) or card.get("format_version") != FORMAT_VERSION:
                raise UsageError(f"{path}: not a generic start of format {FORMAT_VERSION}")
            for name, tensor in expected.items():
                if name not in file.keys() or file.get_slice(name).get_shape() != list(tensor.shape):  # noqa: SIM118
                    raise UsageError(f"{path}: tensor {name} is missing or of another shape; it is of another network")
            tensors = {name: file.get_tensor(name).to(tensor.dtype) for name, tensor in expected.items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise UsageError(f"{path}: not a whole generic start ({error}); install stlm-edge again") from None
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
    return card


def _packed(tensor: Tensor) -> Tensor:
    matrix = tensor.is_floating_point() and tensor.dim() >= 2
    return (tensor.half() if matrix else tensor).contiguous()
