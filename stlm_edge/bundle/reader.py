"""A bundle: the folder a device needs and nothing else. `manifest.json`, the packed model, `golden/`.

Opening trusts nothing: every file must be listed, plain, inside the folder, of its listed size and sha256; sizes come
before contents and contents before allocation. Files that begin with a dot (what file managers leave) are not looked
at; any other file that the manifest doesn't list is refused.
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
from stlm_edge.formats import read_metadata, stamp
from stlm_edge.images import PREPROCESSING, SIXTEEN_BIT, load
from stlm_edge.runtimes import Runtime, open_runtime
from stlm_edge.verdict import SCORE_RULE, Verdict, verdict_of

FRONTIER = ".frontier.json"  # what the export tried, with times: beside the bundle's content, which has none of them
_AGAIN = "copy the bundle again or export it anew"


class Bundle:
    """An opened bundle: `folder`, `manifest`, and the model, which is loaded when it is first asked something."""

    def __init__(self, folder: Path, manifest: Manifest, runtime: str, threads: int | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self._runtime = runtime
        self._threads = threads

    @cached_property
    def runtime(self) -> Runtime:
        """The loaded model. Raises UsageError when its runtime is missing or the artifact doesn't suit it."""
        path = self.folder / self.manifest.artifact
        runtime = open_runtime(self._runtime, path, self._threads)
        if runtime.size != self.manifest.input.size:
            raise UsageError(
                f"{path}: takes size {runtime.size}, the manifest says {self.manifest.input.size}; {_AGAIN}"
            )
        return runtime

    def predict(self, image: str | Path | Image.Image | np.ndarray) -> Verdict:
        """The verdict on an image: a path, a PIL image, or an RGB array uint8 H×W×3.

        Raises UsageError for an image that can't be read, JobError when the model's answer isn't finite.
        """
        answer = self.runtime.run(load(image, self.manifest.input.size))
        return verdict_of(answer, self.manifest.decision_threshold.value)

    def golden(self) -> Iterator[GoldenImage]:
        """The golden images, one at a time, each file verified again as it is read."""
        listed = {file.path: file for file in self.manifest.files}
        for entry in self.manifest.golden:
            yield golden.decode(entry, self.folder, lambda path: _read_verified(self.folder, listed[path]))


def open_bundle(folder: str | Path, runtime: str | None = None, threads: int | None = None) -> Bundle:
    """Open and verify a bundle; exported as `stlm_edge.open`.

    `runtime` overrides the one that the manifest names; `threads` None is one per physical core. Raises UsageError
    with the file's name for anything that isn't as the manifest says.
    """
    folder = Path(folder)
    if not folder.is_dir():
        kept = previous_folder(folder)
        rescue = (
            f"its replacement was interrupted: rename {kept} to {folder.name}" if kept.exists() else "check the path"
        )
        raise UsageError(f"{folder}: no such bundle folder; {rescue}")
    _check_plain(folder, MANIFEST)
    manifest = read_manifest(folder / MANIFEST)
    listed = {file.path: file for file in manifest.files}
    for file in manifest.files:
        size = _check_plain(folder, file.path)
        if size != file.bytes:
            raise UsageError(f"{folder / file.path}: {size} bytes, the manifest says {file.bytes}; {_AGAIN}")
    _refuse_unlisted(folder, set(listed))
    for file in manifest.files:
        if sha256_of(folder / file.path) != file.sha256:
            raise _changed(folder / file.path)
    _check_meaning(folder, manifest)
    return Bundle(folder, manifest, runtime or manifest.runtime, threads)


def _check_plain(folder: Path, path: str) -> int:
    """The size of a plain file inside the folder, reached without any link."""
    place = folder
    for part in path.split("/"):
        place = place / part
        try:
            found = place.lstat()
        except OSError:
            raise UsageError(f"{folder / path}: missing; {_AGAIN}") from None
        if stat.S_ISLNK(found.st_mode):
            raise UsageError(f"{place}: a link; a bundle holds plain files only, {_AGAIN}")
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{place}: not a plain file; {_AGAIN}")
    return found.st_size


def _refuse_unlisted(folder: Path, listed: set[str]) -> None:
    folders = {str(parent) for path in listed for parent in Path(path).parents}
    for inside in sorted(folders):
        for entry in os.scandir(folder / inside):
            path = (Path(inside) / entry.name).as_posix()
            if not entry.name.startswith(".") and path not in listed | folders | {MANIFEST}:
                raise UsageError(f"{folder / path}: not listed in the manifest; remove it or {_AGAIN}")


def _check_meaning(folder: Path, manifest: Manifest) -> None:
    """Refuse what this release would silently compute otherwise than the bundle was made for."""
    known = [
        ("input.preprocessing", manifest.input.preprocessing, PREPROCESSING),
        ("input.sixteen_bit", manifest.input.sixteen_bit, SIXTEEN_BIT),
        ("score_rule", manifest.score_rule, SCORE_RULE),
    ]
    for key, found, expected in known:
        if found != expected:
            raise UsageError(
                f"{folder / MANIFEST}: {key}: found {found[:60]!r}, this release does {expected!r}; export anew"
            )
    artifact = folder / manifest.artifact
    if (metadata := read_metadata(artifact)) is not None:
        for key, expected in stamp(manifest.decision_threshold, manifest.input.size).items():
            if (found := metadata.get(key, "nothing")) != expected:
                raise UsageError(
                    f"{artifact}: its metadata says {found[:60]!r} for {key}, the manifest {expected!r}; {_AGAIN}"
                )


def _read_verified(folder: Path, file: ListedFile) -> bytes:
    with (folder / file.path).open("rb") as source:
        data = source.read(file.bytes + 1)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _changed(folder / file.path)
    return data


def _changed(path: Path) -> UsageError:
    return UsageError(f"{path}: its content has changed (sha256 differs from the manifest); {_AGAIN}")


def previous_folder(folder: Path) -> Path:
    """Where the old bundle stands while the new one takes its place."""
    return folder.resolve().with_name(f".{folder.name}.previous")
