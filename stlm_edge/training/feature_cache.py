"""Cache of the frozen teacher's feature maps on disk, shared by all runs and processes.

One file per image, named by the sha256 of all that the maps follow from. It holds 32 bytes, sha256 over that name and
the values, and then the two maps in float16; a file with anything else is computed again.
"""

import contextlib
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from stlm_edge.files import cache_folder
from stlm_edge.model.stlm import STRIDE, Maps
from stlm_edge.teachers import Teacher

FORMAT_VERSION = 1  # to be raised when the files or a teacher's maps change
LIMIT_BYTES = 10 << 30
DIGEST_BYTES = 32
ENTRY = re.compile(r"[0-9a-f]{64}\.maps")
TEMPORARY = ".part"
STALE_SECONDS = 3600.0


class FeatureCache:
    """Function of an image, uint8 S×S×3, to its two maps 1×256×S/16×S/16, float16 on the CPU.

    Entries are in `folder/features-1` (default: the user's cache folder). The least recently used ones are removed when
    all of them exceed `limit_bytes` (by up to a twentieth per process that writes). The teacher must be fitted before.
    When the folder cannot be written to, a warning is printed and nothing more is cached.
    """

    def __init__(self, teacher: Teacher, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES):
        self.folder = (folder or cache_folder()) / f"features-{FORMAT_VERSION}"
        self.teacher = teacher
        self.limit_bytes = limit_bytes
        self.fingerprint = fingerprint(teacher)
        self._writes = True
        self._unchecked_bytes = limit_bytes  # the first entry written starts a check of the folder

    def __call__(self, image: np.ndarray) -> Maps:
        """Return the teacher's maps of an image, read or computed, the same either way."""
        image = np.ascontiguousarray(image)
        device = next(self.teacher.parameters()).device
        key = hashlib.sha256(f"{self.fingerprint} {device.type} {image.shape}".encode())
        key.update(image)
        path = self.folder / f"{key.hexdigest()}.maps"
        shape = 2, 1, self.teacher.channels, image.shape[0] // STRIDE, image.shape[1] // STRIDE
        values = _read(path, shape)
        if values is None:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                maps = self.teacher(torch.from_numpy(image)[None].to(device))
                values = torch.stack([m.half().cpu() for m in maps]).contiguous()
            if values.isfinite().all():
                self._keep(path, values.numpy().tobytes())
        return values[0], values[1]

    def _keep(self, path: Path, values: bytes) -> None:
        if not self._writes or len(values) > self.limit_bytes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._unchecked_bytes += len(values)
            if self._unchecked_bytes > self.limit_bytes / 20:
                _remove_oldest(self.folder, self.limit_bytes)
                self._unchecked_bytes = 0
            handle, temporary = tempfile.mkstemp(TEMPORARY, dir=self.folder)
            try:
                with open(handle, "wb") as file:  # noqa: PTH123 (a handle, not a path)
                    file.write(_digest(path, values) + values)
                Path(temporary).replace(path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            self._writes = False
            reason = error.strerror or str(error)
            print(f"warning: {self.folder}: {reason}; continuing without the feature cache", file=sys.stderr)


def fingerprint(teacher: Teacher) -> str:
    """Return the sha256 over the teacher's weights (by their digest) and its buffers, which fitting changes."""
    total = hashlib.sha256(f"{teacher.name} {teacher.digest}".encode())
    for name, buffer in teacher.named_buffers():
        total.update(name.encode() + buffer.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _read(path: Path, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Return the entry's values, or None where it is missing, incomplete or damaged."""
    try:
        content = bytearray(path.read_bytes())
    except OSError:
        return None
    if content[:DIGEST_BYTES] != _digest(path, content[DIGEST_BYTES:]):
        return None
    with contextlib.suppress(OSError):  # removed meanwhile, or a read-only folder
        os.utime(path)
    return torch.frombuffer(content, dtype=torch.float16, offset=DIGEST_BYTES).reshape(shape)


def _digest(path: Path, values: bytes | bytearray) -> bytes:
    return hashlib.sha256(path.name.encode() + values).digest()


def _remove_oldest(folder: Path, limit_bytes: int) -> None:
    """Reduce the entries to nine tenths of the limit if they exceed it; remove what killed processes left."""
    entries = []
    with os.scandir(folder) as files:
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # another process removes files too
                status = file.stat(follow_symlinks=False)
                if ENTRY.fullmatch(file.name):
                    entries.append((status.st_mtime_ns, status.st_size, file.path))
                elif file.name.endswith(TEMPORARY) and time.time() - status.st_mtime > STALE_SECONDS:
                    Path(file.path).unlink()
    total = sum(size for _, size, _ in entries)
    if total <= limit_bytes:
        return
    for _, size, path in sorted(entries):
        Path(path).unlink(missing_ok=True)
        total -= size
        if total <= 0.9 * limit_bytes:
            return
