"""Artifact formats: the files an artifact consists of, and the metadata stored inside it.

The metadata has the decision threshold of the export, so that a lone artifact gives verdicts, too; `stlm-calibrate`
changes the bundle's manifest only.
"""

from pathlib import Path

from stlm_edge.formats import coreml, onnx, openvino, tflite
from stlm_edge.images import PREPROCESSING, SIXTEEN_BIT
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.verdict import SCORE_RULE

_READERS = {
    ".mlpackage": coreml.read_metadata,
    ".onnx": onnx.read_metadata,
    ".openvino": openvino.read_metadata,
    ".tflite": tflite.read_metadata,
}


def files_of(artifact: Path) -> list[Path]:
    """Return the artifact itself, or all files in its folder in sorted order."""
    return sorted(path for path in artifact.rglob("*") if path.is_file()) if artifact.is_dir() else [artifact]


def read_metadata(artifact: Path) -> dict[str, str] | None:
    """Return the metadata of an artifact, or None for a format without it. Raises UsageError for a damaged one."""
    read = _READERS.get(artifact.suffix)
    return read(artifact) if read else None


def metadata_entries(decision_threshold: DecisionThreshold, size: int) -> dict[str, str]:
    """Return the metadata that every artifact carries, for an input of `size` × `size` pixels."""
    return {
        "stlm_edge.threshold": repr(decision_threshold.value),
        "stlm_edge.median_score": repr(decision_threshold.median_score),
        "stlm_edge.map_low": repr(decision_threshold.map_low),
        "stlm_edge.map_high": repr(decision_threshold.map_high),
        "stlm_edge.input_size": str(size),
        "stlm_edge.preprocessing": PREPROCESSING,
        "stlm_edge.sixteen_bit": SIXTEEN_BIT,
        "stlm_edge.score_rule": SCORE_RULE,
    }
