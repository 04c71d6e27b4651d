"""Runs a Core ML package by Core ML itself, on macOS."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stlm_edge.errors import JobError, UsageError
from stlm_edge.formats import coreml


class CoreML:
    """A `.mlpackage` whose input is `image`, an RGB image of S×S, and whose outputs are `anomaly_map`, float32
    1×1×S×S, and `score`, float32 of shape 1. Core ML chooses among CPU, GPU and Neural Engine, and the threads.

    Raises UsageError when coremltools is missing, Core ML cannot load the package, or the package is another one.
    """

    name = "coreml"

    def __init__(self, artifact: str | Path) -> None:
        coremltools = import_coremltools()
        coreml.check_files(artifact)
        try:
            self.model = coremltools.models.MLModel(str(artifact))
        except Exception as error:  # Core ML's come as RuntimeError, coremltools' own as anything
            problem = " ".join(str(error).split())[:200]
            raise UsageError(f"{artifact}: Core ML cannot load it ({problem}); export anew or update macOS") from None
        self.artifact = artifact
        self.size = size_of_contract(artifact, self.model.get_spec().description)

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """uint8 RGB S×S×3 in; anomaly map float32 S×S and score out.

        Raises ValueError for another shape or type, JobError when an output isn't finite or Core ML fails.
        """
        if image.shape != (self.size, self.size, 3) or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self.size}×{self.size}×3, found {image.dtype} {image.shape}")
        try:
            answer = self.model.predict({"image": Image.fromarray(image)})
        except Exception as error:  # as above
            raise JobError(f"{self.artifact}: Core ML failed ({error})") from None
        anomaly_map, score = np.asarray(answer["anomaly_map"], np.float32)[0, 0], float(np.ravel(answer["score"])[0])
        if not (np.isfinite(anomaly_map).all() and np.isfinite(score)):
            raise JobError(f"{self.artifact}: the anomaly map or score is not finite (NaN or infinite)")
        return anomaly_map, score


def import_coremltools() -> Any:
    """The package, without what it says while it is imported. Raises UsageError when it is missing."""
    with quiet_log():
        try:
            import coremltools
        except ImportError as error:
            raise UsageError(f'{error.name} is not installed; pip install "stlm-edge[export]"') from None
    return coremltools


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Keep coremltools' log lines from the user: what matters is checked or raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)


def size_of_contract(artifact: str | Path, description: Any) -> int:
    """The side S of the input, from a model's description. Raises UsageError when its contract is another one."""
    inputs = [(value.name, value.type.imageType) for value in description.input]
    size = inputs[0][1].width if inputs else 0
    outputs = {value.name: value.type.multiArrayType for value in description.output}
    kinds = {name: (list(array.shape), array.dataType) for name, array in outputs.items()}
    float32 = 65568  # MultiArrayFeatureType.FLOAT32
    expected = {"anomaly_map": ([1, 1, size, size], float32), "score": ([1], float32)}
    rgb = [(name, image.height, image.colorSpace) for name, image in inputs] == [("image", size, 20)]  # ColorSpace.RGB
    if not size or not rgb or kinds != expected:
        found = ", ".join([name for name, _ in inputs] + [f"{name} {shape}" for name, (shape, _) in kinds.items()])
        raise UsageError(
            f"{artifact}: another model: found {found[:200]}; expected image, an RGB image of S×S, anomaly_map "
            "float32 [1, 1, S, S] and score float32 [1]"
        )
    return size
