"""An ONNX file's metadata, read without the onnx package, which devices do not have.

An ONNX file is one protobuf message, ModelProto (onnx.proto, github.com/onnx/onnx). Field 7 is the graph; field 14,
repeated, is `metadata_props`, a StringStringEntryProto of key (1) and value (2).
"""

from pathlib import Path

from stlm_edge.errors import UsageError
from stlm_edge.formats.intact import Bytes, Malformed, mapped
from stlm_edge.formats.protobuf import BYTES, fields, messages, string_map

_GRAPH, _METADATA = 7, 14
_MAX_DEPTH = 32
_NESTED = {  # the messages that lead to a TensorProto, by message and field
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_EXTERNAL_DATA = 13  # of a TensorProto: the file that holds its values


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX file. Raises UsageError for a damaged file or a duplicate key."""
    with mapped(path, "ONNX file") as data:
        if len(graphs := messages(data, _GRAPH)) != 1:
            raise Malformed(f"{len(graphs)} graphs, expected one")
        return string_map(data, _METADATA)


def check_self_contained(path: str | Path) -> None:
    """Raise UsageError if a tensor's values are in another file, which could be any file on the device."""
    with mapped(path, "ONNX file") as data:
        if _has_external_data(data, "Model", 0, len(data), 0):
            raise UsageError(f"{path}: keeps weights in other files, expected none; export again")


def _has_external_data(data: Bytes, message: str, start: int, end: int, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise Malformed(f"graphs nested more than {_MAX_DEPTH} deep")
    for field in fields(data, start, end):
        if message == "Tensor" and field.number == _EXTERNAL_DATA:
            return True
        nested = _NESTED[message].get(field.number) if field.wire == BYTES else None
        if nested and _has_external_data(data, nested, field.start, field.end, depth + 1):
            return True
    return False
