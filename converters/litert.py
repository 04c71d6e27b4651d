"""STLM as one TFLite file for LiteRT: image in, anomaly map out, built-in operators only.

Input `image`, float32 1×S×S×3 RGB, values 0 to 255 (LiteRT's Kotlin API has no uint8); output `anomaly_map`, float32
1×1×S×S. Top-k becomes an operator that the interpreter lacks, so the score is taken from the map outside. Threshold,
labels, resize and provenance stand in the file's metadata (`stlm_edge/tflite_metadata.py`). The same checkpoint gives
the same bytes. Converters say nothing of files that cannot run: every file is loaded and run before it counts.

fp16: the weights of linear layers and convolutions, computed in float32. int8: linear layers take each image's own
range (dynamic), so there are no ranges to calibrate; convolutions only store int8 weights; what isn't int8 has float16
weights. In float32 stay the first convolutions of both encoders: a hundredth of the weights, and in fp16 and in
weight-only int8 nearly all of the map's error came from them.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stlm_edge.converters.onnx import folded, quiet
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import replacing
from stlm_edge.formats import metadata_entries
from stlm_edge.formats.tflite import IDENTIFIER, METADATA_NAME
from stlm_edge.model import STLM
from stlm_edge.runtimes.litert import LiteRT, silenced_stderr
from stlm_edge.threshold import DecisionThreshold

try:
    with silenced_stderr(), quiet():
        import flatbuffers
        import litert_torch
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_quantizer import quantizer, recipe_manager
        from ai_edge_quantizer.algorithm_manager import AlgorithmName
except ImportError as error:
    raise UsageError(f'{error.name} is not installed; pip install "stlm-edge[export]"') from None

LABELS = ("normal", "anomalous")
LINEAR, CONVOLUTIONS = ("FULLY_CONNECTED",), ("CONV_2D", "DEPTHWISE_CONV_2D")
# Regular expressions for the names of layers; the export takes the first with which the gate holds.
FP16 = (r"^(?!.*/(patch_embed|layers/0)/)", r"^(?!.*/(patch_embed|layers/[01])/)")


def to_tflite(model: STLM, path: Path, decision_threshold: DecisionThreshold, provenance: dict[str, Any]) -> None:
    """Write the model, which is in evaluation mode and stays as it is, in float32.

    Raises JobError when the converter gives anything but a file that runs.
    """
    size = model.config.size
    with _silent(), torch.no_grad():
        converted = litert_torch.convert(_MapOnly(model).eval(), sample_kwargs={"image": torch.zeros(1, size, size, 3)})
        content = converted.model_content()
    _save(content, path, _about(decision_threshold, size, provenance))


def to_fp16(
    source: Path,
    path: Path,
    decision_threshold: DecisionThreshold,
    size: int,
    provenance: dict[str, Any],
    layers: str = FP16[0],
) -> None:
    """Write `source`, which `to_tflite` made, with these layers' weights in float16. Raises JobError like it."""
    _save(_quantized(source, _half(layers)), path, _about(decision_threshold, size, provenance), "FLOAT16")


def to_int8(
    source: Path,
    path: Path,
    decision_threshold: DecisionThreshold,
    size: int,
    provenance: dict[str, Any],
    in_float: Sequence[str] = (),
) -> None:
    """Write `source`, which `to_tflite` made, with int8 weights. Raises JobError like `to_tflite`.

    `in_float`: layers whose names begin with one of these, `plain.layers.2.blocks.0.attn.` say, stay in float.
    """
    recipe = _half(FP16[0])
    begins = "|".join(re.escape(name.rstrip(".").replace(".", "/")) for name in in_float)
    kept = rf"^({begins})(?!\w)" if in_float else "(?!)"
    for operator in LINEAR:
        recipe.add_dynamic_config(f"^(?!{kept})", operator, 8)
    for operator in CONVOLUTIONS:
        recipe.add_weight_only_config(f"^(?!{kept}){FP16[0]}", operator, 8)
    _save(_quantized(source, recipe), path, _about(decision_threshold, size, provenance), "INT8", kept)


def _half(layers: str) -> recipe_manager.RecipeManager:
    recipe = recipe_manager.RecipeManager()
    for operator in LINEAR + CONVOLUTIONS:
        recipe.add_weight_only_config(layers, operator, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    return recipe


class _MapOnly(nn.Module):
    """The network without its score; what does not depend on the image is computed beforehand."""

    def __init__(self, model: STLM) -> None:
        super().__init__()
        self.model = folded(model)
        grid = model.config.size // 16
        encoding = self.model.prompt_encoder.pe_layer(grid, grid)
        self.model.prompt_encoder.pe_layer = _Constant(encoding)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"anomaly_map": self.model(image).anomaly_map}


class _Constant(nn.Module):
    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach())

    def forward(self, *arguments: int) -> Tensor:
        return self.value


def _about(decision_threshold: DecisionThreshold, size: int, provenance: dict[str, Any]) -> dict[str, str]:
    return metadata_entries(decision_threshold, size) | {
        "stlm_edge.labels": json.dumps(LABELS),
        "stlm_edge.provenance": json.dumps(provenance, sort_keys=True, ensure_ascii=False),
    }


def _quantized(source: Path, recipe: recipe_manager.RecipeManager) -> bytes:
    with _silent():
        made = quantizer.Quantizer(str(source), recipe.get_quantization_recipe())
        content = made.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model
    return bytes(content)


def _save(content: bytes, path: Path, about: dict[str, str], biases: str = "FLOAT32", in_float: str = "(?!)") -> None:
    """Name tensors by their modules, write with our metadata, and run what was written."""
    model = schema.ModelT.InitFromPackedBuf(content)
    _bring_inside(model, content)
    _check_operators(model)
    if biases != "FLOAT32":
        _shrink_attention_biases(model, biases, in_float)
    (graph,) = model.subgraphs
    names = {_readable(tensor.name.decode()) for tensor in graph.tensors}
    unique = len(names) == len(graph.tensors)
    for number, tensor in enumerate(graph.tensors):
        tensor.name = _readable(tensor.name.decode()) if unique else f"{_readable(tensor.name.decode())}#{number}"
    graph.tensors[graph.inputs[0]].name, graph.tensors[graph.outputs[0]].name = "image", "anomaly_map"
    model.description = "stlm-edge"
    for entry in model.metadata or []:
        if entry.name.decode() == METADATA_NAME:
            model.buffers[entry.buffer].data = None
    model.metadata = [entry for entry in model.metadata or [] if entry.name.decode() != METADATA_NAME]
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(about, ensure_ascii=False, sort_keys=True).encode(), np.uint8)
    entry.name, entry.buffer = METADATA_NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata.append(entry)
    builder = flatbuffers.Builder(len(content) + (1 << 16))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    with replacing(path) as temporary:
        temporary.write_bytes(builder.Output())
        try:
            runtime = LiteRT(temporary, threads=1)
            runtime.run(np.full((runtime.size, runtime.size, 3), 128, np.uint8))
        except UsageError as problem:
            raise JobError(f"the converter wrote a file that does not run: {problem}") from None


def _bring_inside(model: Any, content: bytes) -> None:
    """Put weights that the quantizer has laid behind the FlatBuffer (Buffer's `offset` and `size`) into it."""
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0


def _shrink_attention_biases(model: Any, kind: str, in_float: str) -> None:
    """Store the gathered attention biases, 1×heads×tokens×tokens, in fewer bits: in float32 they are 9 MB at S=224.

    As `kind`, but in float16 where `in_float`, a regular expression, finds the layer's name. The interpreter brings
    them back to float32 once, when it loads the file, as it does with convolutions' weights.
    """
    (graph,) = model.subgraphs
    codes = [code.builtinCode for code in model.operatorCodes]
    add, dequantize = (codes.index(getattr(schema.BuiltinOperator, name)) for name in ("ADD", "DEQUANTIZE"))
    users = Counter(tensor.buffer for tensor in graph.tensors)
    added = {
        index: graph.tensors[operator.outputs[0]].name.decode()
        for operator in graph.operators
        if operator.opcodeIndex == add
        for index in operator.inputs
    }
    before = []
    for index, layer in sorted(added.items()):
        tensor, as_int8 = graph.tensors[index], kind == "INT8" and not re.search(in_float, layer)
        data = model.buffers[tensor.buffer].data
        if data is None or len(tensor.shape) != 4 or tensor.shape[2] != tensor.shape[3] or tensor.shape[2] < 49:
            continue
        values = np.frombuffer(bytes(data), "<f4").reshape(tensor.shape)
        stored, buffer = schema.TensorT(), schema.BufferT()
        stored.name, stored.shape, stored.type = (
            tensor.name + b"/stored",
            tensor.shape,
            schema.TensorType.INT8 if as_int8 else schema.TensorType.FLOAT16,
        )
        if as_int8:
            scale = np.maximum(np.abs(values).max(axis=(0, 2, 3)), 1e-9) / 127  # one per head
            stored.quantization = schema.QuantizationParametersT()
            stored.quantization.scale = scale.astype(np.float32)
            stored.quantization.zeroPoint = np.zeros(len(scale), np.int64)
            stored.quantization.quantizedDimension = 1
            shrunk = np.rint(values / scale[:, None, None]).astype(np.int8)
        else:
            shrunk = values.astype("<f2")
        buffer.data = np.frombuffer(shrunk.tobytes(), np.uint8)
        stored.buffer = len(model.buffers)
        model.buffers.append(buffer)
        if users[tensor.buffer] == 1:
            model.buffers[tensor.buffer].data = None
        tensor.buffer = 0
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = dequantize, [len(graph.tensors)], [index]
        operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
        operator.builtinOptions = schema.DequantizeOptionsT()
        graph.tensors.append(stored)
        before.append(operator)
    graph.operators = before + graph.operators


def _check_operators(model: Any) -> None:
    known = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    names = [known.get(code.builtinCode, str(code.builtinCode)) for code in model.operatorCodes]
    foreign = sorted({name for name in names if name == "CUSTOM" or name.startswith("STABLEHLO_")})
    if foreign or len(model.subgraphs) != 1:
        raise JobError(
            f"the converter wrote {len(model.subgraphs)} graphs with {', '.join(foreign) or 'no'} foreign operators, "
            "expected one of TFLite's own operators alone; install the locked versions"
        )


def _readable(name: str) -> str:
    """A tensor's name by the path of its module, without the classes that litert-torch puts into it."""
    path = re.sub(r"(?:\w+\.)+[A-Za-z0-9]+_(?=[a-z0-9])", "", name.split(";;")[0])
    return path.rpartition("_MapOnly/model/")[2]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the progress and log lines of litert-torch from the user."""
    from litert_torch import progress

    before, progress.config.show_progress = progress.config.show_progress, False
    try:
        with silenced_stderr(), quiet():
            yield
    finally:
        progress.config.show_progress = before
