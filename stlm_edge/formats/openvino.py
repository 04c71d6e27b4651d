"""An OpenVINO IR's files, and its metadata, read without the openvino package.

The artifact is a folder of `model.xml`, the graph, and `model.bin`, its weights. The metadata is in the graph's
`rt_info` (docs.openvino.ai, IR format): `<stlm_edge><threshold value="0.5" />`.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

from stlm_edge.formats import intact
from stlm_edge.formats.intact import Malformed, mapped

GRAPH, WEIGHTS = "model.xml", "model.bin"
_MAX_BYTES = 8 << 20
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
            return _entries(data[:].decode())
        except (UnicodeDecodeError, ElementTree.ParseError) as error:
            raise Malformed(str(error)) from None


def _entries(text: str) -> dict[str, str]:
    if "<!DOCTYPE" in text:
        raise Malformed("it has a DOCTYPE, which no IR needs")
    root = ElementTree.fromstring(text)
    if root.tag != "net":
        raise Malformed(f"the root element is <{root.tag[:60]}>, not <net>")
    sections = root.findall("rt_info/stlm_edge")
    if len(sections) > 1:
        raise Malformed("duplicate <stlm_edge>")
    entries: dict[str, str] = {}
    for element in sections[0] if sections else ():
        name, value = element.tag, element.get("value", "")
        if len(element) or element.keys() != ["value"] or not re.fullmatch(r"[a-z_]{1,60}", name):
            raise Malformed(f"<{name[:60]}> is no metadata entry")
        key = f"stlm_edge.{name}"
        if key in entries or len(value) > _MAX_VALUE:
            raise Malformed(f"the metadata key {key} is a duplicate or longer than {_MAX_VALUE} characters")
        entries[key] = value
    return entries
