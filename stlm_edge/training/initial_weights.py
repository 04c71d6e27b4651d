"""Initial weights of trainings: one encoder and the decoder, distilled on varied images.

A file also holds the deviations of the proxy teacher's channels, with which its weights were distilled.
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
from stlm_edge.model.tiny_vit import TinyViT
from stlm_edge.teachers import Teacher
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.teachers.sam import Sam

KEY = "stlm_edge_start"
FORMAT_VERSION = 1
SHIPPED = Path(__file__).parent / "weights" / "initial_weights.safetensors"
PARTS = ("plain.", "mask_decoder.", "prompt_encoder.")


def save(path: Path, model: STLM, teacher: Teacher, card: dict[str, Any]) -> None:
    """Write initial weights, matrices in float16; `card` describes what they were distilled on."""
    card |= {"format_version": FORMAT_VERSION, "teacher": teacher.description, "teacher_sha256": teacher.digest}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _parts(model, teacher).items()}
    packed = {n: t.half() if t.is_floating_point() and t.dim() >= 2 else t for n, t in tensors.items()}
    with replacing(path) as temporary:
        save_file(packed, temporary, {KEY: json.dumps(card)})
        temporary.chmod(0o644)  # safetensors leaves it readable by its owner alone


def load(path: Path, model: STLM, teacher: Teacher, frozen: bool = False) -> dict[str, Any]:
    """Set the plain encoder, the decoder and a proxy teacher's deviations from a file; return its card.

    Weights distilled from another teacher are accepted where training changes them, not where the plain stream is
    `frozen`. Raises UsageError: for these, and for a file that is truncated or of another version or network.
    """
    expected = _parts(model, teacher)
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {}).get(KEY, "null"))
            if not isinstance(card, dict) or card.get("format_version") != FORMAT_VERSION:
                raise UsageError(f"{path}: not initial weights of format {FORMAT_VERSION}")
            of_another = card.get("teacher_sha256") != teacher.digest
            if of_another and (frozen or isinstance(teacher, EfficientNetLite0)):
                raise UsageError(
                    f"{path}: distilled from {card.get('teacher')}, and the teacher is {teacher.name}; distil from it "
                    f"by benchmarks/initial_weights.py --teacher {teacher.name} and give the result as --init"
                    + (", or choose --recipe standard" if isinstance(teacher, Sam) else "")
                )
            for name, tensor in expected.items():
                if name not in file.keys() or file.get_slice(name).get_shape() != list(tensor.shape):  # noqa: SIM118
                    raise UsageError(f"{path}: tensor {name} is missing or of another shape; it is of another network")
            tensors = {name: file.get_tensor(name).to(tensor.dtype) for name, tensor in expected.items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise UsageError(f"{path}: not intact initial weights ({error}); install stlm-edge again") from None
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
    return card


def copy_mobile_sam(teacher: Teacher, model: STLM) -> None:
    """Copy MobileSAM's encoder and decoder, which have the student's shape at any input size, from `vit_t`."""
    if not isinstance(teacher, Sam) or not isinstance(teacher.image_encoder, TinyViT):
        raise UsageError(f"--init {teacher.name}: only vit_t has the student's shape")
    model.plain.load_state_dict(teacher.image_encoder.state_dict())
    model.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
    model.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())


def _parts(model: STLM, teacher: Teacher) -> dict[str, Tensor]:
    parts = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(PARTS)}
    if isinstance(teacher, EfficientNetLite0):
        parts |= {"teacher.std_1": teacher.std_1, "teacher.std_2": teacher.std_2}
    return parts
