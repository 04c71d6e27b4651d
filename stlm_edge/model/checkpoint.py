"""Checkpoints: a `.safetensors` file with weights, configuration, decision threshold and provenance.

The header's metadata holds one JSON object under the key `stlm_edge`. Opening a file checks its version, config, and
every tensor's name, type and shape against the network before a weight is read; nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stlm_edge import strict_json
from stlm_edge.errors import UsageError
from stlm_edge.files import replacing
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.threshold import DecisionThreshold

KEY = "stlm_edge"
FORMAT_VERSION: Literal[1] = 1
MAX_METADATA = 1 << 20
DTYPES = {torch.float32: "F32", torch.int64: "I64"}


@dataclass(frozen=True)
class Header:
    """Metadata of a checkpoint file."""

    format_version: Literal[1]
    config: ModelConfig
    decision_threshold: DecisionThreshold
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; the model is in evaluation mode."""

    model: STLM
    decision_threshold: DecisionThreshold
    provenance: dict[str, Any]


def save(path: Path, model: STLM, provenance: dict[str, Any], decision_threshold: DecisionThreshold) -> None:
    """Write a checkpoint atomically."""
    header = Header(FORMAT_VERSION, model.config, decision_threshold, provenance)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {KEY: json.dumps(asdict(header), allow_nan=False)})
        except SafetensorError as error:
            raise OSError(None, str(error), str(path)) from None
        temporary.chmod(0o644)  # safetensors creates it readable only by its owner


def load(path: Path) -> Checkpoint:
    """Open a checkpoint. Raises UsageError for a missing, damaged or incompatible file."""
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint; expected the .safetensors file that stlm-train writes")
    try:
        with safe_open(path, framework="pt") as file:
            header = _read_header(path, file.metadata())
            with torch.device("meta"):
                expected = STLM(header.config).state_dict()
            actual = {name: (s.get_dtype(), s.get_shape()) for name in file.keys() for s in [file.get_slice(name)]}  # noqa: SIM118
            _compare(path, actual, {name: (DTYPES[t.dtype], list(t.shape)) for name, t in expected.items()})
            tensors = {name: file.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise UsageError(f"{path}: not a complete safetensors file ({error}); copy it or train again") from None
    model = STLM(header.config)
    model.load_state_dict(tensors)
    return Checkpoint(model.eval(), header.decision_threshold, header.provenance)


def from_published(tensors: Mapping[str, np.ndarray], size: int) -> STLM:
    """Return a model, in evaluation mode, from arrays with the published implementation's names.

    Names are MobileSAM's and segment-anything's under `plain.`, `denoising.`, `mask_decoder.` and `prompt_encoder.`,
    and the published segmentation network's under `fa.`. Raises UsageError for a missing, unknown or misshapen array.
    """
    try:
        model = STLM(ModelConfig(size))
    except ValueError as error:
        raise UsageError(str(error)) from None
    expected = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = {name: array for name, array in tensors.items() if not name.endswith("num_batches_tracked")}
    actual = {name: ("F32", list(array.shape)) for name, array in given.items()}
    _compare("published weights", actual, {name: ("F32", list(t.shape)) for name, t in expected.items()})
    arrays = {name: torch.tensor(np.asarray(array, dtype=np.float32)) for name, array in given.items()}
    model.load_state_dict(arrays, strict=False)
    return model.eval()


def _read_header(path: Path, metadata: dict[str, str] | None) -> Header:
    text = (metadata or {}).get(KEY)
    if text is None:
        raise UsageError(f"{path}: safetensors without stlm-edge's metadata; expected a file that stlm-train wrote")
    if len(text) > MAX_METADATA:
        raise UsageError(f"{path}: metadata of {len(text)} bytes, the limit is {MAX_METADATA}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{path}: its metadata is not valid JSON; copy it or train again") from None
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{path}: checkpoint format {str(version)[:20]}, this release reads {FORMAT_VERSION}; "
            "install the release that wrote it or train again"
        )
    return strict_json.read(Header, value, str(path))


def _compare(source: Any, actual: dict[str, tuple[str, list[int]]], expected: dict[str, tuple[str, list[int]]]) -> None:
    for name in expected.keys() | actual.keys():
        if actual.get(name) != expected.get(name):
            have, want = (
                "nothing" if tensor is None else f"{tensor[0]} {tensor[1]}"
                for tensor in (actual.get(name), expected.get(name))
            )
            raise UsageError(
                f"{source}: tensor {name[:100]}: found {have}, expected {want}; weights of another network"
            )
