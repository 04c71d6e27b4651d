"""Conversion to one TFLite file for LiteRT: image in, anomaly map out, built-in operators only.

Input `image`, float32 1×S×S×3 RGB, values 0 to 255 (LiteRT's Kotlin API has no uint8); output `anomaly_map`, float32
1×1×S×S. The interpreter lacks the operator that top-k becomes, so the score is computed outside. The same checkpoint
always gives the same bytes. fp16: weights only, computed in float32. int8: linear layers with each image's own range;
convolutions only store int8 weights. The first convolutions stay in float32, as they caused most of the map's error.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stlm_edge.converters import quiet
from stlm_edge.converters.export_form import fold_batch_norms
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import replacing
from stlm_edge.formats import metadata_entries
from stlm_edge.formats.tflite import IDENTIFIER, METADATA_NAME, read_metadata
from stlm_edge.model import STLM
from stlm_edge.model.stlm import STRIDE
from stlm_edge.runtimes.litert import LiteRT, silenced_stderr
from stlm_edge.threshold import DecisionThreshold

with silenced_stderr(), quiet():
    import flatbuffers
    import litert_torch
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer import quantizer, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from litert_torch import progress

    progress.config.show_progress = False

LABELS = ("normal", "anomalous")
LINEAR, CONVOLUTIONS = ("FULLY_CONNECTED",), ("CONV_2D", "DEPTHWISE_CONV_2D")
# Regular expressions for the names of layers, candidates for fp16 weights in this order.
FP16 = (r"^(?!.*/(patch_embed|layers/0)/)", r"^(?!.*/(patch_embed|layers/[01])/)")
NOTHING = "(?!)"  # the regular expression that matches nothing
MIN_BIASES = 49  # tokens; smaller attention biases stay in float32


def to_tflite(model: STLM, path: Path, threshold: DecisionThreshold, provenance: dict[str, Any]) -> None:
    """Write the model, in evaluation mode, in float32. Raises JobError like `save`."""
    size = model.config.size
    with silenced_stderr(), quiet(), torch.no_grad():
        converted = litert_torch.convert(_MapOnly(model).eval(), sample_kwargs={"image": torch.zeros(1, size, size, 3)})
        content = converted.model_content()
    metadata = metadata_entries(threshold, size) | {
        "stlm_edge.labels": json.dumps(LABELS),
        "stlm_edge.provenance": json.dumps(provenance, sort_keys=True, ensure_ascii=False),
    }
    save(content, path, metadata)


def to_fp16(source: Path, path: Path, layers: str = FP16[0]) -> None:
    """Write the file of `to_tflite` with the weights of `layers`, a regular expression, in float16."""
    save(_quantized(source, _fp16_recipe(layers)), path, read_metadata(source), "FLOAT16")


def to_int8(source: Path, path: Path, in_float: Sequence[str] = ()) -> None:
    """Write the file of `to_tflite` with int8 weights, except in layers whose names begin with one of `in_float`."""
    recipe = _fp16_recipe(FP16[0])
    begins = "|".join(re.escape(name.rstrip(".").replace(".", "/")) for name in in_float)
    kept = rf"^({begins})(?!\w)" if in_float else NOTHING
    for operator in LINEAR:
        recipe.add_dynamic_config(f"^(?!{kept})", operator, 8)
    for operator in CONVOLUTIONS:
        recipe.add_weight_only_config(f"^(?!{kept}){FP16[0]}", operator, 8)
    save(_quantized(source, recipe), path, read_metadata(source), "INT8", kept)


def _fp16_recipe(layers: str) -> recipe_manager.RecipeManager:
    recipe = recipe_manager.RecipeManager()
    for operator in LINEAR + CONVOLUTIONS:
        recipe.add_weight_only_config(layers, operator, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    return recipe


def _quantized(source: Path, recipe: recipe_manager.RecipeManager) -> bytes:
    with silenced_stderr(), quiet():
        made = quantizer.Quantizer(str(source), recipe.get_quantization_recipe())
        content = made.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model
    return bytes(content)


class _MapOnly(nn.Module):
    """The network without its score, and with the positional encoding computed beforehand."""

    def __init__(self, model: STLM) -> None:
        super().__init__()
        self.model = fold_batch_norms(model)
        grid = model.config.size // STRIDE
        encoding = self.model.prompt_encoder.pe_layer(grid, grid)
        self.model.prompt_encoder.pe_layer.forward = lambda height, width: encoding

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"anomaly_map": self.model(image).anomaly_map}


def save(
    content: bytes, path: Path, metadata: dict[str, str], biases: str = "FLOAT32", in_float: str = NOTHING
) -> None:
    """Name tensors after their modules, write the file with its metadata, and run it once.

    Attention biases are stored as `biases`: FLOAT32, FLOAT16, or INT8 but for the layers `in_float`, a regular
    expression, which are FLOAT16. Raises JobError if operators are not built in, or the file does not run.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    for buffer in model.buffers:
        if buffer.offset > 1:  # the quantizer stores weights behind the FlatBuffer
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    _check_operators(model)
    if biases != "FLOAT32":
        _shrink_attention_biases(model, biases, in_float)
    (graph,) = model.subgraphs
    names = [_module_path(tensor.name.decode()) for tensor in graph.tensors]
    is_unique = len(set(names)) == len(names)
    for number, (tensor, name) in enumerate(zip(graph.tensors, names, strict=True)):
        tensor.name = name if is_unique else f"{name}#{number}"
    graph.tensors[graph.inputs[0]].name, graph.tensors[graph.outputs[0]].name = "image", "anomaly_map"
    model.description = "stlm-edge"
    entry = next((entry for entry in model.metadata or [] if entry.name.decode() == METADATA_NAME), None)
    if entry is None:
        entry = schema.MetadataT()
        entry.name, entry.buffer = METADATA_NAME, len(model.buffers)
        model.buffers.append(schema.BufferT())
        model.metadata = [*(model.metadata or []), entry]
    text = json.dumps(metadata, ensure_ascii=False, sort_keys=True)
    model.buffers[entry.buffer].data = np.frombuffer(text.encode(), np.uint8)
    builder = flatbuffers.Builder(len(content) + (1 << 16))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    with replacing(path) as temporary:
        temporary.write_bytes(builder.Output())
        try:
            runtime = LiteRT(temporary, threads=1)
            runtime.run(np.full((runtime.size, runtime.size, 3), 128, np.uint8))
        except UsageError as problem:
            raise JobError(f"the converter wrote a file that does not run: {problem}") from None


def _shrink_attention_biases(model: Any, kind: str, in_float: str) -> None:
    """Store attention biases, 1×heads×tokens×tokens, in fewer bits: in float32 they take 9 MB at S=224."""
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
        if data is None or len(tensor.shape) != 4 or not MIN_BIASES <= tensor.shape[2] == tensor.shape[3]:
            continue
        values = np.frombuffer(bytes(data), "<f4").reshape(tensor.shape)
        stored, buffer = schema.TensorT(), schema.BufferT()
        stored.name, stored.shape = tensor.name + b"/stored", tensor.shape
        stored.type = schema.TensorType.INT8 if as_int8 else schema.TensorType.FLOAT16
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
    names = {known.get(code.builtinCode, str(code.builtinCode)) for code in model.operatorCodes}
    foreign = sorted(name for name in names if name == "CUSTOM" or name.startswith("STABLEHLO_"))
    if foreign or len(model.subgraphs) != 1:
        raise JobError(
            f"the converter wrote {len(model.subgraphs)} graphs with the operators {', '.join(foreign) or 'expected'}, "
            "expected one graph of TFLite's built-in operators; install the locked versions"
        )


def _module_path(name: str) -> str:
    """Return the path of a tensor's module, without the class names that litert-torch puts into it."""
    path = re.sub(r"(?:\w+\.)+[A-Za-z0-9]+_(?=[a-z0-9])", "", name.split(";;")[0])
    return path.rpartition("_MapOnly/model/")[2]
