"""Packages that npm fetches: once, into the cache, and checked against the sum that stands here."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stlm_edge.errors import JobError
from stlm_edge.files import cache_folder

_TIME_LIMIT_S = 600


@dataclass(frozen=True)
class Package:
    """A package of one version; `sha512` is of its .tgz, in base64, as npm's own lock files have it."""

    name: str
    version: str
    sha512: str

    @property
    def file(self) -> str:
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def fetch(package: Package) -> Path:
    """The package's .tgz in the cache, fetched by `npm pack` where it isn't there yet.

    Raises JobError: no npm, no connection, or a file of another sum.
    """
    folder = cache_folder() / "npm"
    path = folder / package.file
    by_hand = f"run `npm pack {package.name}@{package.version}` elsewhere and put {package.file} into {folder}"
    if not path.is_file():
        npm = shutil.which("npm")
        if npm is None:
            raise JobError(
                f"npm is not installed, which fetches {package.name}; install Node.js with npm, or {by_hand}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", str(folder), "--silent"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_LIMIT_S, cwd=folder)
        except subprocess.TimeoutExpired:
            raise JobError(f"npm: gave no {package.file} within {_TIME_LIMIT_S} s; try again, or {by_hand}") from None
        if done.returncode or not path.is_file():
            words = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
            raise JobError(f"npm: {words[-1][:200]}; check the connection, or {by_hand}")
    if base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode() != package.sha512:
        raise JobError(f"{path}: not the published {package.name} {package.version}; remove it and try again")
    return path


def unpack(package: Package, names: Iterable[str], folder: Path) -> None:
    """Write these files of the package, named as inside it, flat into `folder`. Raises JobError like `fetch`."""
    path = fetch(package)
    wanted = {f"package/{name}": folder / Path(name).name for name in names}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if place := wanted.pop(member.name, None):
                    source = archive.extractfile(member)
                    assert source is not None
                    with source, place.open("wb") as target:
                        shutil.copyfileobj(source, target)
                if not wanted:
                    return
    except OSError as error:
        raise JobError(f"{folder}: cannot be written ({error.strerror or error})") from None
    raise JobError(f"{path}: has no {', '.join(wanted)}")
