"""npm packages: downloaded once into the cache and verified by checksum."""

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
    """A package in one version; `sha512` is the checksum of its .tgz in base64, as in npm's lock files."""

    name: str
    version: str
    sha512: str

    @property
    def file(self) -> str:
        """Name of the .tgz as `npm pack` writes it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def fetch(package: Package) -> Path:
    """Return the package's .tgz in the cache, downloaded by `npm pack` if it is missing. Raises JobError."""
    folder = cache_folder() / "npm"
    path = folder / package.file
    command = ["npm", "pack", f"{package.name}@{package.version}"]
    by_hand = f"run `{' '.join(command)}` on another machine and copy {package.file} into {folder}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command += ["--pack-destination", str(folder), "--silent"]
        try:
            command[0] = shutil.which("npm") or "npm"
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_LIMIT_S, cwd=folder)
        except FileNotFoundError:
            raise JobError(f"npm is not installed, needed for {package.name}; install Node.js, or {by_hand}") from None
        except subprocess.TimeoutExpired:
            raise JobError(f"npm: no {package.file} within {_TIME_LIMIT_S} s; try again, or {by_hand}") from None
        if done.returncode or not path.is_file():
            lines = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
            raise JobError(f"npm: {lines[-1][:200]}; check the connection, or {by_hand}")
    if base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode() != package.sha512:
        raise JobError(f"{path}: wrong checksum for {package.name} {package.version}; remove it and try again")
    return path


def unpack(package: Package, names: Iterable[str], folder: Path) -> None:
    """Write files of the package, named as inside it, into `folder` without subfolders. Raises JobError and OSError."""
    path = fetch(package)
    with tarfile.open(path, "r:gz") as archive:
        for name in names:
            try:
                source = archive.extractfile(f"package/{name}")
            except KeyError:
                raise JobError(f"{path}: has no {name}") from None
            assert source is not None
            with source, (folder / Path(name).name).open("wb") as target:
                shutil.copyfileobj(source, target)
