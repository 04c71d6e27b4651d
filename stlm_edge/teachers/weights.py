"""Published weights of github.com/facebookresearch/segment-anything and github.com/ChaoningZhang/MobileSAM.

They are downloaded once. Only a file with the published sha256 is unpickled, and with `weights_only`.
"""

import http.client
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stlm_edge import progress
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import cache_folder, sha256_of

if sys.platform != "win32":
    from fcntl import LOCK_EX, flock

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Weights:
    """A published file."""

    model: str
    address: str
    bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.address.rpartition("/")[2]

    @property
    def description(self) -> str:
        """The network and its file, for a model's provenance."""
        family = "MobileSAM" if self.model == "vit_t" else "SAM"
        return f"{family} ViT-{self.model[-1].upper()} ({self.file_name})"


_META = "https://dl.fbaipublicfiles.com/segment_anything/"
PUBLISHED = {
    weights.model: weights
    for weights in (
        Weights(
            "vit_t",
            "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
            40_728_226,
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
        Weights(
            "vit_b",
            _META + "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        Weights(
            "vit_l",
            _META + "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        Weights(
            "vit_h",
            _META + "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    )
}


def read(path: Path, weights: Weights) -> dict[str, Tensor]:
    """Return a published file's tensors by name, on the CPU. Raises UsageError where it is missing or another file."""
    replace = f"replace it by {weights.address}"
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected {weights.model}'s weights, {weights.address}")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != weights.bytes:
            others = [other.model for other in PUBLISHED.values() if other.bytes == size]
            likely = f"by their size these are {others[0]}'s" if others else "truncated or another file"
            raise UsageError(f"{path}: {size} bytes, expected {weights.bytes} for {weights.model}: {likely}; {replace}")
        digest = sha256_of(file)
        if digest != weights.sha256:
            raise UsageError(f"{path}: sha256 {digest}, expected {weights.sha256} for {weights.model}; {replace}")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def fetched(weights: Weights, folder: Path | None = None) -> Path:
    """Return the file in the cache folder, downloaded if it is missing.

    An interrupted download is continued, and of several processes one downloads. Raises JobError for an unreachable
    server, another size or sha256, and a full disk.
    """
    folder = folder or cache_folder()
    finished = folder / weights.file_name
    if finished.exists():
        return finished
    by_hand = f"download {weights.address} and put it at {finished}, or give it by --teacher-weights"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{weights.file_name}.lock").open("w") as lock:
            if sys.platform != "win32":
                flock(lock, LOCK_EX)
            if not finished.exists():
                _download(weights, finished, by_hand)
    except OSError as error:
        raise JobError(f"{folder}: {weights.model}'s weights cannot be saved ({error.strerror}); {by_hand}") from None
    return finished


def _download(weights: Weights, finished: Path, by_hand: str) -> None:
    part = finished.with_name(f"{finished.name}.part")
    part.touch()
    if part.stat().st_size > weights.bytes:
        os.truncate(part, 0)
    best = -1
    while (size := part.stat().st_size) < weights.bytes:
        if size <= best:
            raise JobError(f"{weights.address}: the connection ends after {size} of {weights.bytes} bytes; {by_hand}")
        best = size
        try:
            with progress.step(weights.file_name, weights.bytes, in_bytes=True) as advance:
                _request(weights, part, by_hand, advance)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the partial file is longer than the server's
                part.unlink()
            raise JobError(f"{weights.address}: HTTP {error.code} {error.reason}; {by_hand}") from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            if part.stat().st_size <= size:
                reason = getattr(error, "reason", None) or error or type(error).__name__
                raise JobError(f"{weights.address}: not reachable ({reason}); {by_hand}") from None
    digest = sha256_of(part)
    if digest != weights.sha256:
        part.unlink()
        raise JobError(f"{weights.address}: sent a file with sha256 {digest}, expected {weights.sha256}; {by_hand}")
    part.replace(finished)


def _request(weights: Weights, part: Path, by_hand: str, advance: Callable[..., None]) -> None:
    """Append to `part` what one connection sends; a server without ranges sends the file from its beginning."""
    size = part.stat().st_size
    headers = {"User-Agent": "stlm-edge"} | ({"Range": f"bytes={size}-"} if size else {})
    request = urllib.request.Request(weights.address, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        content_range = response.headers.get("Content-Range", "")
        continues = response.status == 206 and content_range.startswith(f"bytes {size}-")
        total = content_range.rpartition("/")[2] if continues else response.headers.get("Content-Length", "")
        if total.isdecimal() and int(total) != weights.bytes:
            raise JobError(f"{weights.address}: {total} bytes, expected {weights.bytes}; {by_hand}")
        with part.open("ab") as file:
            if not continues:
                file.truncate(0)
                size = 0
            advance(size)
            while size < weights.bytes and (chunk := response.read(min(CHUNK, weights.bytes - size))):
                file.write(chunk)
                size += len(chunk)
                advance(len(chunk))
