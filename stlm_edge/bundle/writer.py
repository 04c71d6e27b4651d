"""Write bundles, completely or not at all."""

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from stlm_edge.bundle import Bundle, open_bundle
from stlm_edge.bundle.golden import GoldenCandidate, encode
from stlm_edge.bundle.manifest import (
    MANIFEST,
    Input,
    ListedFile,
    Manifest,
    MapOutput,
    Outputs,
    ScoreOutput,
    read_manifest,
)
from stlm_edge.bundle.reader import CANDIDATES, previous_folder
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import replacing, sha256_of
from stlm_edge.formats import files_of
from stlm_edge.images import PREPROCESSING, SIXTEEN_BIT
from stlm_edge.strict_json import dump
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.verdict import SCORE_RULE


def write_bundle(
    folder: Path,
    artifact: Path,
    golden: Sequence[GoldenCandidate],
    *,
    decision_threshold: DecisionThreshold,
    input_dtype: Literal["uint8", "float32"] = "uint8",
    score_output: bool = True,
    force: bool = False,
    candidates: str | None = None,
    **fields: Any,
) -> Manifest:
    """Write a bundle into a temporary folder beside `folder`, then rename it; `force` replaces an existing bundle.

    `artifact`, a file or folder that has its metadata already, is copied as `model` with its own suffix. `candidates`
    is JSON of the precision ladder with its times. `fields` are those of the manifest that follow from no argument.

    Raises UsageError when the folder exists and may not be replaced, JobError when the bundle cannot be written.
    """
    check_writable(folder, force)
    size = len(golden[0].tensor)
    entries, files = encode(golden)
    with replacing_folder(folder) as temporary:
        packed = f"model{artifact.suffix}"
        copy_files(artifact, temporary / packed)
        parts = [path.relative_to(temporary).as_posix() for path in files_of(temporary / packed)]
        (temporary / "golden").mkdir()
        for path, content in files.items():
            (temporary / path).write_bytes(content)
        score = ScoreOutput("score") if score_output else None
        manifest = Manifest(
            format_version=1,
            files=tuple(list_file(temporary, path) for path in [*parts, *files]),
            artifact=packed,
            input=Input("image", size, "NHWC", input_dtype, "RGB", PREPROCESSING, SIXTEEN_BIT),
            outputs=Outputs(MapOutput("anomaly_map", (1, 1, size, size)), score),
            score_rule=SCORE_RULE,
            decision_threshold=decision_threshold,
            exported_threshold=decision_threshold,
            verdict_delta=decision_threshold.delta,
            golden=entries,
            **fields,
        )
        (temporary / MANIFEST).write_text(dump(manifest), encoding="utf-8")
        if candidates is not None:
            (temporary / CANDIDATES).write_text(candidates + "\n", encoding="utf-8")
        open_bundle(temporary)
    return manifest


def recalibrate(bundle: Bundle, decision_threshold: DecisionThreshold) -> Manifest:
    """Replace the decision threshold in a bundle's manifest. The artifact keeps the threshold of its export.

    Raises JobError when the manifest has changed since the bundle was opened, or cannot be written.
    """
    path = bundle.folder / MANIFEST
    manifest = dataclasses.replace(
        bundle.manifest, decision_threshold=decision_threshold, verdict_delta=decision_threshold.delta
    )
    if read_manifest(path) != bundle.manifest:
        raise JobError(f"{path}: changed since the bundle was opened; run it again")
    try:
        with replacing(path) as temporary:
            temporary.write_text(dump(manifest), encoding="utf-8")
            _flush(temporary)
    except OSError as error:
        raise JobError(f"{path}: cannot be written ({error.strerror}); nothing was changed") from None
    return manifest


def copy_files(source: Path, destination: Path) -> None:
    """Copy a file, or the files of a folder. Raises OSError."""
    for part in files_of(source):
        to = destination / part.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part, to)


def check_writable(folder: Path, force: bool) -> None:
    """Raise UsageError unless the parent is writable and the folder is new or, with `force`, empty or a bundle."""
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None
    if not (folder.exists() or folder.is_symlink()):
        return
    if not force:
        raise UsageError(f"{folder}: exists; choose another folder or give --force to replace it")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else {"no folder"}
    foreign = {name for name in names if not name.startswith((".", "model."))} - {MANIFEST, "golden"}
    if foreign or (names and MANIFEST not in names):
        raise UsageError(f"{folder}: not a bundle, so it is not replaced; choose another folder")


def list_file(folder: Path, path: str) -> ListedFile:
    """Return the manifest's entry for a file of the folder."""
    return ListedFile(path, sha256_of(folder / path), (folder / path).stat().st_size)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it replaces `folder` if the block succeeds, else it is removed."""
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    previous = previous_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for path in list(folder.parent.iterdir()):
            if re.fullmatch(rf"\.{re.escape(folder.name)}\.\d+\.tmp", path.name):  # left by a killed process
                shutil.rmtree(path, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for path in files_of(temporary):
            _flush(path)
        if folder.exists():
            if previous.exists():
                shutil.rmtree(previous)
            folder.rename(previous)
        try:
            temporary.rename(folder)
        except BaseException:
            if previous.exists() and not folder.exists():
                previous.rename(folder)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    except OSError as error:
        raise JobError(f"{folder}: cannot be written ({error.strerror}); nothing was changed") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
