"""An OpenVINO IR's files, and its metadata, read without the openvino package.

The artifact is a folder, `model.openvino`, of two files: `model.xml`, the graph, and `model.bin`, its weights. The
graph's `rt_info` (docs.openvino.ai, IR format) holds the metadata, as `<stlm_edge><threshold value="0.5" />`, where
`model.get_rt_info(["stlm_edge", "threshold"])` finds it.

The XML reader limits size and depth, and accepts no DOCTYPE, hence no entities.
"""

import re
from pathlib import Path
from typing import Any
from xml.parsers import expat

from stlm_edge.formats import intact
from stlm_edge.formats.intact import Malformed, mapped

GRAPH, WEIGHTS = "model.xml", "model.bin"
_SECTION = ["net", "rt_info", "stlm_edge"]
_MAX_BYTES = 32 << 20
_MAX_DEPTH = 32
_MAX_VALUE = 4096  # characters


def check_files(artifact: str | Path) -> None:
    """Raise UsageError if the folder has other files than the two expected."""
    intact.check_files(artifact, GRAPH, WEIGHTS)


def read_metadata(artifact: str | Path) -> dict[str, str]:
    """Return the entries of `<stlm_edge>`, none where it is missing. Raises UsageError for damaged XML."""
    with mapped(Path(artifact) / GRAPH, "OpenVINO IR") as data:
        if len(data) > _MAX_BYTES:
            raise Malformed(f"more than {_MAX_BYTES} bytes")
        try:
            return _entries(data[:])
        except expat.ExpatError as error:
            raise Malformed(str(error)) from None


def _entries(content: bytes) -> dict[str, str]:
    path: list[str] = []
    sections = 0
    entries: dict[str, str] = {}

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal sections
        path.append(name)
        if len(path) > _MAX_DEPTH:
            raise Malformed(f"elements nested more than {_MAX_DEPTH} deep")
        if path[0] != "net":
            raise Malformed(f"the root element is <{name[:60]}>, not <net>")
        if path == _SECTION:
            sections += 1
            if sections > 1:
                raise Malformed("duplicate <stlm_edge>")
        elif path[:3] == _SECTION:
            key, value = f"stlm_edge.{name}", attributes.get("value", "")
            if len(path) > 4 or set(attributes) != {"value"} or not re.fullmatch(r"[a-z_]{1,60}", name):
                raise Malformed(f"<{name[:60]}> is no metadata entry")
            if key in entries or len(value) > _MAX_VALUE:
                raise Malformed(f"the metadata key {key} is a duplicate or longer than {_MAX_VALUE} characters")
            entries[key] = value

    def refuse_doctype(*_: object) -> None:
        raise Malformed("it has a DOCTYPE, which no IR needs")

    parser: Any = expat.ParserCreate("utf-8")
    parser.StartDoctypeDeclHandler = refuse_doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: path.pop()
    parser.Parse(content, True)
    return entries
