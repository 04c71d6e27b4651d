"""Files of Debian packages that this system hasn't, taken without installing them, for what the tests need besides.

apt fetches them, in a folder of its own, from the machine's own sources with the release's name replaced; so their
signatures are checked as ever. Needs only the standard library, apt and dpkg, and no rights.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


@contextlib.contextmanager
def reporting_missing(what: str) -> Iterator[None]:
    """Print why a package cannot be installed, and fail nothing: the tests that need it are skipped."""
    try:
        yield
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        told = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        reason = (told.strip() or str(error)).splitlines()[-1]
        print(f"{what} can't be had here ({reason}); tests that need it are skipped")


def unpack(releases: list[str], packages: list[str], folder: Path) -> Path:
    """The packages' files, as other releases of Debian have them, in a folder inside `folder`.

    Raises OSError or subprocess.SubprocessError where they can't be had.
    """
    lines = [line for release in releases for line in sources(release)]
    if not lines:
        raise OSError("this system has no source of Debian packages")
    folder.chmod(0o755)  # apt reads and writes as a user of its own
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    (folder / "sources.list").write_text("".join(lines))
    private = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [word for key, value in private.items() for word in ("-o", f"{key}={value}")]
    run("apt-get", *options, "-q", "update", folder=folder)
    run("apt-get", *options, "-q", "download", *packages, folder=folder)
    for package in folder.glob("*.deb"):
        run("dpkg-deb", "-x", str(package), str(folder / "unpacked"), folder=folder)
    return folder / "unpacked"


def sources(release: str) -> list[str]:
    """The machine's sources of its own Debian release, with that release's name replaced."""
    facts = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = facts.get("VERSION_CODENAME", "").strip('"')
    if facts.get("ID") != "debian":
        return []
    wanted = ["Identifier: Packages", "Component: main"]
    told = run("apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)", *wanted).stdout
    found = {uri for uri, _, name in (line.partition("|") for line in told.splitlines()) if name == codename}
    return [f"deb [signed-by={KEYS}] {uri} {release} main\n" for uri in sorted(found)]


def run(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=True, capture_output=True, text=True, cwd=folder, timeout=300)
