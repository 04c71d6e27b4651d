"""The generic start: one encoder and the decoder, distilled on varied images, that both streams begin from.

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
from stlm_edge.model.tiny_vit import TinyViT
from stlm_edge.teachers import Teacher
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.teachers.sam import Sam

KEY = "stlm_edge_start"
FORMAT_VERSION = 1
SHIPPED = Path(__file__).parent / "weights" / "generic_start.safetensors"
PARTS = ("plain.", "mask_decoder.", "prompt_encoder.")


def save(path: Path, model: STLM, teacher: Teacher, card: dict[str, Any]) -> None:
    """Write a start; `card` says what it was distilled on."""
    card = {
        "format_version": FORMAT_VERSION,
        "teacher": teacher.description,
        "teacher_sha256": teacher.digest,
        **card,
    }
    packed = {name: _packed(tensor.detach().cpu()) for name, tensor in _parts(model, teacher).items()}
    with replacing(path) as temporary:
        save_file(packed, temporary, {KEY: json.dumps(card)})
        temporary.chmod(0o644)  # safetensors leaves it readable by its owner alone


def load(path: Path, model: STLM, teacher: Teacher, frozen: bool = False) -> dict[str, Any]:
    """Fill the plain encoder, the decoder and a stand-in teacher's deviations; returns the card.

    A start of another teacher will do as long as training goes on to change it, not where the plain stream stays
    `frozen`. Raises UsageError: that, not a start, truncated, of another version or network.
    """
    expected = _parts(model, teacher)
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {}).get(KEY, "null"))
            if not isinstance(card, dict) or card.get("format_version") != FORMAT_VERSION:
                raise UsageError(f"{path}: not a generic start of format {FORMAT_VERSION}")
            of_another = card.get("teacher_sha256") != teacher.digest
            if of_another and (frozen or isinstance(teacher, EfficientNetLite0)):
                raise UsageError(
                    f"{path}: distilled from {card.get('teacher')}, and the teacher is {teacher.name}; make a start of "
                    f"it by benchmarks/generic_start.py --teacher {teacher.name} and give that as --init"
                    + (", or train by --recipe standard" if isinstance(teacher, Sam) else "")
                )
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


def copy_mobile_sam(published: Teacher, model: STLM) -> None:
    """Begin from MobileSAM's weights: its encoder and decoder are the student's own shape.

    `published` is the teacher `vit_t`; a grid of another size than SAM's keeps every weight, since none depends on it.
    """
    if not isinstance(published, Sam) or not isinstance(published.image_encoder, TinyViT):
        raise UsageError(f"--init {published.name}: only vit_t has the student's shape")
    model.plain.load_state_dict(published.image_encoder.state_dict())
    model.mask_decoder.load_state_dict(published.mask_decoder.state_dict())
    model.prompt_encoder.load_state_dict(published.prompt_encoder.state_dict())


def _parts(model: STLM, teacher: Teacher) -> dict[str, Tensor]:
    parts = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(PARTS)}
    if isinstance(teacher, EfficientNetLite0):
        parts |= {"teacher.std_1": teacher.std_1, "teacher.std_2": teacher.std_2}
    return parts


def _packed(tensor: Tensor) -> Tensor:
    matrix = tensor.is_floating_point() and tensor.dim() >= 2
    return (tensor.half() if matrix else tensor).contiguous()
