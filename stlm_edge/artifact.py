"""What a bundle needs of its artifact whatever the format: which files it is, and its own metadata.

An artifact is one file, or a folder where the format is one, as Core ML's is, or takes two files, as OpenVINO's does.
"""

from pathlib import Path

from stlm_edge import coreml_package, onnx_metadata, openvino_metadata, tflite_metadata

_FORMATS = {
    ".mlpackage": coreml_package,
    ".onnx": onnx_metadata,
    ".openvino": openvino_metadata,
    ".tflite": tflite_metadata,
}


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
