"""Open and verify a bundle: the folder of `manifest.json`, the artifact and `golden/` that a device needs.

Every file must be listed, plain, inside the folder, and of its listed size and checksum (sha256). Sizes are checked
before contents are read, and contents before anything is allocated for them. Hidden files (what file managers leave)
are ignored; any other unlisted file is refused.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from stlm_edge.bundle import golden
from stlm_edge.bundle.golden import GoldenImage
from stlm_edge.bundle.manifest import MANIFEST, ListedFile, Manifest, read_manifest
from stlm_edge.errors import UsageError
from stlm_edge.files import sha256_of
from stlm_edge.formats import metadata_entries, read_metadata
from stlm_edge.images import PREPROCESSING, SIXTEEN_BIT, load
from stlm_edge.runtimes import Runtime, open_runtime
from stlm_edge.verdict import SCORE_RULE, Verdict, verdict_of

CANDIDATES = ".candidates.json"  # the export's precision ladder with its times, which the manifest does not hold
_RENEW = "copy the bundle again or export it again"


class Bundle:
    """An opened bundle: its folder and manifest, and the model, which is loaded at its first use."""

    def __init__(self, folder: Path, manifest: Manifest, runtime: str, threads: int | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self._runtime = runtime
        self._threads = threads

    @cached_property
    def runtime(self) -> Runtime:
        """The loaded model; for TensorRT its engine, which is built first if none is kept for this device.

        Raises UsageError when the runtime is missing or the artifact does not suit it, JobError when TensorRT cannot
        build the engine.
        """
        path = self.folder / self.manifest.artifact
        if self._runtime == "tensorrt" and path.suffix == ".onnx":
            from stlm_edge.bundle.engine import engine_for

            path = engine_for(path)
        runtime = open_runtime(self._runtime, path, self._threads)
        if runtime.size != self.manifest.input.size:
            raise UsageError(f"{path}: input size {runtime.size}, expected {self.manifest.input.size}; {_RENEW}")
        return runtime

    def predict(self, image: str | Path | Image.Image | np.ndarray) -> Verdict:
        """Return the verdict on an image: a path, a PIL image, or an RGB array uint8 H×W×3.

        Raises UsageError when the image cannot be read, JobError when the model fails or its output is not finite.
        """
        outputs = self.runtime.run(load(image, self.manifest.input.size))
        return verdict_of(outputs, self.manifest.decision_threshold.value)

    def golden(self) -> Iterator[GoldenImage]:
        """Yield the golden images one at a time; each file is verified again as it is read."""
        listed = {file.path: file for file in self.manifest.files}
        for entry in self.manifest.golden:
            yield golden.decode(entry, self.folder, lambda path: _read_verified(self.folder, listed[path]))


def open_bundle(folder: str | Path, runtime: str | None = None, threads: int | None = None) -> Bundle:
    """Open and verify a bundle; exported as `stlm_edge.open`.

    Args:
        folder: The bundle.
        runtime: Runtime to use instead of the manifest's.
        threads: Threads of the runtime; None for one per physical core.

    Raises:
        UsageError: The bundle differs from its manifest; the message names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        interrupted = f"its replacement was interrupted: rename {previous_folder(folder)} to {folder.name}"
        advice = interrupted if previous_folder(folder).exists() else "check the path"
        raise UsageError(f"{folder}: no such bundle folder; {advice}")
    _check_plain(folder, MANIFEST)
    manifest = read_manifest(folder / MANIFEST)
    for file in manifest.files:
        size = _check_plain(folder, file.path)
        if size != file.bytes:
            raise UsageError(f"{folder / file.path}: {size} bytes, the manifest lists {file.bytes}; {_RENEW}")
    _refuse_unlisted(folder, {file.path for file in manifest.files})
    for file in manifest.files:
        if sha256_of(folder / file.path) != file.sha256:
            raise _changed(folder / file.path)
    _check_meaning(folder, manifest)
    return Bundle(folder, manifest, runtime or manifest.runtime, threads)


def previous_folder(folder: Path) -> Path:
    """Return where the old bundle is kept while a new one replaces it."""
    return folder.resolve().with_name(f".{folder.name}.previous")


def _check_plain(folder: Path, path: str) -> int:
    """Return the size of a plain file inside the folder that is reached without any link."""
    place = folder
    for part in path.split("/"):
        place = place / part
        try:
            status = place.lstat()
        except OSError:
            raise UsageError(f"{folder / path}: missing; {_RENEW}") from None
        if stat.S_ISLNK(status.st_mode):
            raise UsageError(f"{place}: a link; a bundle holds plain files only, {_RENEW}")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{place}: not a plain file; {_RENEW}")
    return status.st_size


def _refuse_unlisted(folder: Path, listed: set[str]) -> None:
    folders = {str(parent) for path in listed for parent in Path(path).parents}
    for inside in sorted(folders):
        for entry in os.scandir(folder / inside):
            path = (Path(inside) / entry.name).as_posix()
            if not entry.name.startswith(".") and path not in listed | folders | {MANIFEST}:
                raise UsageError(f"{folder / path}: not listed in the manifest; remove it or {_RENEW}")


def _check_meaning(folder: Path, manifest: Manifest) -> None:
    """Refuse a bundle that this release would silently compute differently than it was made for."""
    path, artifact = folder / MANIFEST, folder / manifest.artifact
    values = [
        (f"{path}: input.preprocessing", manifest.input.preprocessing, PREPROCESSING),
        (f"{path}: input.sixteen_bit", manifest.input.sixteen_bit, SIXTEEN_BIT),
        (f"{path}: score_rule", manifest.score_rule, SCORE_RULE),
    ]
    if (metadata := read_metadata(artifact)) is not None:
        for key, expected in metadata_entries(manifest.exported_threshold, manifest.input.size).items():
            values.append((f"{artifact}: metadata {key}", metadata.get(key, "nothing"), expected))
    for name, found, expected in values:
        if found != expected:
            raise UsageError(f"{name}: found {found[:60]!r}, expected {expected!r}; export again")


def _read_verified(folder: Path, file: ListedFile) -> bytes:
    with (folder / file.path).open("rb") as source:
        data = source.read(file.bytes + 1)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _changed(folder / file.path)
    return data


def _changed(path: Path) -> UsageError:
    return UsageError(f"{path}: its content has changed (sha256 differs from the manifest); {_RENEW}")
