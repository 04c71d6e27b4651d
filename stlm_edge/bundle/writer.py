"""Writes bundles: whole or not at all."""

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
from stlm_edge.bundle.manifest import MANIFEST, Input, ListedFile, Manifest, MapOutput, Outputs, ScoreOutput
from stlm_edge.bundle.parity import Parity
from stlm_edge.bundle.reader import FRONTIER, previous_folder
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import sha256_of
from stlm_edge.formats import files_of, replace_metadata, stamp
from stlm_edge.images import PREPROCESSING, SIXTEEN_BIT
from stlm_edge.strict_json import dump
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.verdict import SCORE_RULE


def write_bundle(
    folder: Path,
    artifact: Path,
    golden: Sequence[GoldenCandidate],
    *,
    target: str,
    runtime: str,
    precision: str,
    decision_threshold: DecisionThreshold,
    parity: Parity,
    provenance: dict[str, Any],
    tool_versions: dict[str, str],
    parameters: int,
    flops: int | None = None,
    input_dtype: Literal["uint8", "float32"] = "uint8",
    score_output: bool = True,
    parity_loss_allowed: bool = False,
    force: bool = False,
    frontier: str | None = None,
) -> Manifest:
    """Write a bundle whole or not at all: beside its place first, then renamed.

    The artifact, a file or a folder, is copied as `model` with its own suffix and stamped with the threshold. With
    `force` an existing bundle is replaced. `frontier`: JSON of what was tried, with times, which no manifest holds, so
    that two exports' are the same. Raises UsageError when the folder exists otherwise, JobError when it can't
    be written.
    """
    check_writable(folder, force)
    size = len(golden[0].tensor)
    entries, files = encode(golden)
    with replacing_folder(folder) as temporary:
        packed = f"model{artifact.suffix}"
        copy_files(artifact, temporary / packed)
        replace_metadata(temporary / packed, stamp(decision_threshold, size))
        parts = [path.relative_to(temporary).as_posix() for path in files_of(temporary / packed)]
        (temporary / "golden").mkdir()
        for path, content in files.items():
            (temporary / path).write_bytes(content)
        manifest = Manifest(
            format_version=1,
            tool_versions=tool_versions,
            target=target,
            runtime=runtime,
            precision=precision,
            files=tuple(list_file(temporary, path) for path in [*parts, *files]),
            artifact=packed,
            input=Input("image", size, "NHWC", input_dtype, "RGB", PREPROCESSING, SIXTEEN_BIT),
            outputs=Outputs(
                MapOutput("anomaly_map", (1, 1, size, size)), ScoreOutput("score") if score_output else None
            ),
            score_rule=SCORE_RULE,
            decision_threshold=decision_threshold,
            exported_threshold=decision_threshold,
            verdict_delta=decision_threshold.delta,
            provenance=provenance,
            parameters=parameters,
            flops=flops,
            parity=parity,
            parity_loss_allowed=parity_loss_allowed,
            golden=entries,
        )
        (temporary / MANIFEST).write_text(dump(manifest), encoding="utf-8")
        if frontier is not None:
            (temporary / FRONTIER).write_text(frontier + "\n", encoding="utf-8")
        open_bundle(temporary)
    return manifest


def recalibrate(bundle: Bundle, decision_threshold: DecisionThreshold) -> Manifest:
    """Give a bundle another calibration: in its manifest, the artifact's metadata, and the sums of both.

    What the export shipped stays in `exported_threshold`. The new folder is written whole beside the old one, which
    takes twice the bundle's space for a moment, then takes its place; interrupted, the old one stays. Raises JobError
    when it can't be written.
    """
    old = bundle.manifest
    with replacing_folder(bundle.folder) as temporary:
        for file in old.files:
            (temporary / file.path).parent.mkdir(exist_ok=True, parents=True)
            shutil.copyfile(bundle.folder / file.path, temporary / file.path)
            if list_file(temporary, file.path) != file:
                raise JobError(f"{bundle.folder / file.path}: changed while it was copied; run it again")
        replace_metadata(temporary / old.artifact, stamp(decision_threshold, old.input.size))
        packed = {file.path: list_file(temporary, file.path) for file in old.artifact_files}
        manifest = dataclasses.replace(
            old,
            files=tuple(packed.get(file.path, file) for file in old.files),
            decision_threshold=decision_threshold,
            verdict_delta=decision_threshold.delta,
        )
        (temporary / MANIFEST).write_text(dump(manifest), encoding="utf-8")
        open_bundle(temporary)
    return manifest


def copy_files(source: Path, place: Path) -> None:
    """Copy a file, or a folder's files. Raises OSError."""
    for part in files_of(source):
        to = place / part.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part, to)


def check_writable(folder: Path, force: bool) -> None:
    """Raise UsageError unless a bundle may be written here: nothing there, or with `force` a bundle or empty folder;
    and what is around it can be written to."""
    around = folder.absolute().parent
    while not around.exists():
        around = around.parent
    try:
        tempfile.TemporaryDirectory(dir=around).cleanup()
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
    """The manifest's entry for a file of the folder."""
    return ListedFile(path, sha256_of(folder / path), (folder / path).stat().st_size)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, and is gone otherwise."""
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
        for path in temporary.rglob("*"):
            if path.is_file():
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
