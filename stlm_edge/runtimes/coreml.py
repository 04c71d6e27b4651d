"""Run a Core ML package by Core ML itself, on macOS."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stlm_edge.formats import coreml
from stlm_edge.runtimes import Runtime, cannot_load, check_tensors, import_package

_KINDS = {20: "RGB", 65568: "float32"}  # ColorSpace.RGB, MultiArrayFeatureType.FLOAT32


class CoreML(Runtime):
    """A `.mlpackage`; Core ML chooses among CPU, GPU and Neural Engine, and the threads.

    Raises UsageError when coremltools is missing, or the package cannot be loaded or has other inputs or outputs.
    """

    name = "coreml"
    failures = (Exception,)  # RuntimeError from Core ML, anything from coremltools

    def __init__(self, artifact: str | Path, threads: int | None = None) -> None:
        coremltools = import_coremltools()
        coreml.check_files(artifact)
        self.artifact = artifact
        try:
            self.model = coremltools.models.MLModel(str(artifact))
        except Exception as error:  # as above
            raise cannot_load(artifact, f"coremltools {coremltools.__version__}", error) from None
        self.size = check_description(artifact, self.model.get_spec().description)

    def _infer(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        outputs = self.model.predict({"image": Image.fromarray(image)})
        return np.asarray(outputs["anomaly_map"], np.float32)[0, 0], np.ravel(outputs["score"])[0]


def import_coremltools() -> Any:
    """Import coremltools without its log lines. Raises UsageError when it is missing."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        return import_package("coremltools", 'pip install "stlm-edge[export]"')
    finally:
        logging.disable(disabled)


def check_description(artifact: str | Path, description: Any) -> int:
    """Return the side S of the input. Raises UsageError for a model of other inputs or outputs."""
    tensors: list[tuple[str, str, Any]] = []
    for value in description.input:
        image = value.type.imageType
        tensors.append((value.name, _KINDS.get(image.colorSpace, "image"), [1, image.height, image.width, 3]))
    for value in sorted(description.output, key=lambda value: value.name):
        array = value.type.multiArrayType
        tensors.append((value.name, _KINDS.get(array.dataType, "array"), list(array.shape)))
    return check_tensors(
        artifact, tensors, "image RGB [1, S, S, 3], anomaly_map float32 [1, 1, S, S], score float32 [1]"
    )
