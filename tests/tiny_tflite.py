"""A TFLite file of a few operators with an artifact's input and output, as `tiny.write_tiny_onnx` writes in ONNX."""

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from stlm_edge.formats.tflite import IDENTIFIER, METADATA_NAME

FLOAT, INT32 = schema.TensorType.FLOAT32, schema.TensorType.INT32


def tiny_model(size: int, metadata: bytes | None = b'{"key": "value"}      ', divide_by: float = 255.0) -> Any:
    """Return a model whose map is the mean of red, green and blue / `divide_by`: float32 1×S×S×3 to 1×1×S×S."""
    model = schema.ModelT()
    model.version, model.description = 3, "tiny"
    model.buffers = [schema.BufferT()]

    def buffer(content: bytes) -> int:
        model.buffers.append(schema.BufferT())
        model.buffers[-1].data = np.frombuffer(content, np.uint8)
        return len(model.buffers) - 1

    def tensor(name: str, shape: list[int], kind: int = FLOAT, content: bytes | None = None) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, shape, kind, buffer(content) if content else 0
        return made

    def operator(code: int, inputs: list[int], output: int, kind: int = 0, options: Any = None) -> Any:
        made = schema.OperatorT()
        model.operatorCodes.append(schema.OperatorCodeT())
        model.operatorCodes[-1].builtinCode = model.operatorCodes[-1].deprecatedBuiltinCode = code
        model.operatorCodes[-1].version = 1
        made.opcodeIndex, made.inputs, made.outputs = len(model.operatorCodes) - 1, inputs, [output]
        made.builtinOptionsType, made.builtinOptions = kind, options
        return made

    model.operatorCodes = []
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("image", [1, size, size, 3]),
        tensor("axis", [1], INT32, np.array([3], "<i4").tobytes()),
        tensor("grey", [1, size, size, 1]),
        tensor("divisor", [1], FLOAT, np.array([divide_by], "<f4").tobytes()),
        tensor("share", [1, size, size, 1]),
        tensor("shape", [4], INT32, np.array([1, 1, size, size], "<i4").tobytes()),
        tensor("anomaly_map", [1, 1, size, size]),
    ]
    reduce = schema.ReducerOptionsT()
    reduce.keepDims = True
    known, options = schema.BuiltinOperator, schema.BuiltinOptions
    graph.operators = [
        operator(known.MEAN, [0, 1], 2, options.ReducerOptions, reduce),
        operator(known.DIV, [2, 3], 4, options.DivOptions, schema.DivOptionsT()),
        operator(known.RESHAPE, [4, 5], 6, options.ReshapeOptions, schema.ReshapeOptionsT()),
    ]
    graph.inputs, graph.outputs, graph.name = [0], [6], "main"
    model.subgraphs = [graph]
    if metadata is not None:
        add_metadata(model, METADATA_NAME, buffer(metadata))
    return model


def add_metadata(model: Any, name: str, buffer: int) -> None:
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, buffer
    model.metadata = [*(model.metadata or []), entry]


def write_tflite(path: Path, model: Any) -> None:
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    path.write_bytes(builder.Output())
