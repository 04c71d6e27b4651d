"""An OpenVINO IR's metadata, read and replaced without the openvino package.

The artifact is a folder, `model.openvino`, of two files: `model.xml`, the graph, and `model.bin`, its weights. Ours
stand in the graph's `rt_info` (docs.openvino.ai, IR format), where `model.get_rt_info(["stlm_edge", "threshold"])`
finds them: `<net> … <rt_info> … <stlm_edge><threshold value="0.5" />`. All else is copied byte for byte.

The XML is read with limits: of its size, of its depth, and no DOCTYPE, hence no entities.
"""

import re
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from stlm_edge.errors import UsageError
from stlm_edge.files import replacing

GRAPH, WEIGHTS = "model.xml", "model.bin"
SECTION = "stlm_edge"
_PATH = ["net", "rt_info", SECTION]
_END = f"</{SECTION}>".encode()
_MAX_BYTES = 32 << 20
_MAX_DEPTH = 32
_MAX_VALUE = 4096  # characters


class _Malformed(Exception):
    pass


def check_files(artifact: str | Path) -> None:
    """Raise UsageError when the folder isn't made of our two files."""
    artifact = Path(artifact)
    found = {path.name for path in artifact.iterdir() if not path.name.startswith(".")} if artifact.is_dir() else set()
    if found != {GRAPH, WEIGHTS}:
        held = ", ".join(sorted(found))[:200] or "no files"
        raise UsageError(f"{artifact}: holds {held}; expected {GRAPH} and {WEIGHTS}; copy it again or export anew")


def read_metadata(artifact: str | Path) -> dict[str, str]:
    """Our entries, none where there is no section of ours. Raises UsageError when the XML isn't intact."""
    _, entries, _ = _read(Path(artifact) / GRAPH)
    return entries


def replace_metadata(artifact: str | Path, entries: dict[str, str]) -> None:
    """Set these entries of ours and keep all others; the XML is replaced as a whole or not at all.

    Raises UsageError when it isn't intact or has no section of ours, OSError when it can't be written.
    """
    path = Path(artifact) / GRAPH
    content, known, place = _read(path)
    if place is None:
        raise UsageError(f"{path}: holds no metadata of ours, expected <{SECTION}> in its rt_info; export anew")
    lines = [
        f"\t\t\t<{key.removeprefix(f'{SECTION}.')} value={quoteattr(value)} />\n"
        for key, value in sorted((known | entries).items())
    ]
    section = f"<{SECTION}>\n{''.join(lines)}\t\t</{SECTION}>".encode()
    with replacing(path) as temporary:
        temporary.write_bytes(content[: place[0]] + section + content[place[1] :])


def _read(path: Path) -> tuple[bytes, dict[str, str], tuple[int, int] | None]:
    """The XML's bytes, our entries in it, and from where to where their section reaches."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        if len(content) > _MAX_BYTES:
            raise _Malformed(f"more than {_MAX_BYTES} bytes")
        return content, *_Section(content).found()
    except (_Malformed, expat.ExpatError) as problem:
        raise UsageError(f"{path}: not an intact OpenVINO IR ({problem}); copy it again or export anew") from None


class _Section:
    """Walks through the XML for the one section of ours."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.parser = expat.ParserCreate("utf-8")
        self.path: list[str] = []
        self.entries: dict[str, str] = {}
        self.start: int | None = None
        self.end: int | None = None
        parser: Any = self.parser
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler, parser.EndElementHandler = self._element, self._end

    def found(self) -> tuple[dict[str, str], tuple[int, int] | None]:
        self.parser.Parse(self.content, True)
        if self.start is None or self.end is None:
            return {}, None
        return self.entries, (self.start, self.end)

    def _doctype(self, *_: object) -> None:
        raise _Malformed("it has a DOCTYPE, which no IR needs")

    def _element(self, name: str, attributes: dict[str, str]) -> None:
        self.path.append(name)
        if len(self.path) > _MAX_DEPTH:
            raise _Malformed(f"elements nested more than {_MAX_DEPTH} deep")
        if self.path[0] != "net":
            raise _Malformed(f"it begins with <{name[:60]}>, not <net>")
        if self.path == _PATH:
            if self.start is not None:
                raise _Malformed(f"<{SECTION}> stands twice")
            self.start = self.parser.CurrentByteIndex
        elif self.path[:3] == _PATH:
            key, value = f"{SECTION}.{name}", attributes.get("value", "")
            if len(self.path) > 4 or set(attributes) != {"value"} or not re.fullmatch(r"[a-z_]{1,60}", name):
                raise _Malformed(f"<{name[:60]}> is no metadata entry")
            if key in self.entries or len(value) > _MAX_VALUE:
                raise _Malformed(f"the metadata key {key} stands twice or is longer than {_MAX_VALUE} characters")
            self.entries[key] = value

    def _end(self, name: str) -> None:
        if self.path == _PATH:
            at = self.parser.CurrentByteIndex
            if self.content[at : at + len(_END)] != _END:
                raise _Malformed(f"<{SECTION}> is empty")
            self.end = at + len(_END)
        self.path.pop()
