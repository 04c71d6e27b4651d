"""What a bundle needs of its artifact whatever the format: which files it is, and its own metadata.

An artifact is one file, or a folder where the format is one, as Core ML's is, or takes two files, as OpenVINO's does.
"""

from pathlib import Path

from stlm_edge.formats import coreml, onnx, openvino, tflite
from stlm_edge.images import PREPROCESSING, SIXTEEN_BIT
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.verdict import SCORE_RULE

_FORMATS = {".mlpackage": coreml, ".onnx": onnx, ".openvino": openvino, ".tflite": tflite}


def files_of(artifact: Path) -> list[Path]:
    """The artifact itself, or all files in its folder, in an order that is always the same."""
    return sorted(path for path in artifact.rglob("*") if path.is_file()) if artifact.is_dir() else [artifact]


def read_metadata(artifact: Path) -> dict[str, str] | None:
    """What the artifact says of itself; None where its format is none that we know a place in.

    Raises UsageError when it isn't intact.
    """
    known = _FORMATS.get(artifact.suffix)
    return known.read_metadata(artifact) if known else None


def replace_metadata(artifact: Path, entries: dict[str, str]) -> None:
    """Set these entries and keep all others, where the format has a place for them.

    Raises UsageError when it isn't intact, OSError when it can't be written.
    """
    if known := _FORMATS.get(artifact.suffix):
        known.replace_metadata(artifact, entries)


def stamp(decision_threshold: DecisionThreshold, size: int) -> dict[str, str]:
    """What an artifact says of itself in its own metadata, so that a lone file still knows its verdict."""
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
