"""STLM as one TFLite file for LiteRT: picture in, anomaly map out, built-in operators only.

Input `image`, float32 1×S×S×3 RGB, values 0 to 255 (LiteRT's Kotlin API has no uint8); output `anomaly_map`, float32
1×1×S×S. Top-k becomes an operator that the interpreter lacks, so the score is taken from the map outside. Threshold,
labels, resize and provenance stand in the file's metadata (`stlm_edge/tflite_metadata.py`). The same checkpoint gives
the same bytes. Converters say nothing of files that cannot run: every file is loaded and run before it counts.

fp16: the weights of linear layers and convolutions, computed in float32. int8: linear layers take each picture's own
range (dynamic), so there are no ranges to calibrate; convolutions only store int8 weights. On a trained network at
S=256 with one thread that took 0.69 of fp32's time, cosine of the maps .9974 (.99994 with the convolutions in float).
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stlm_edge.bundle import stamp
from stlm_edge.converters.onnx import folded, quiet
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import replacing
from stlm_edge.manifest import Calibration
from stlm_edge.model import STLM
from stlm_edge.runtimes.litert import LiteRT
from stlm_edge.tflite_metadata import IDENTIFIER, METADATA_NAME, encode

try:
    import flatbuffers
    import litert_torch
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer import quantizer, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
except ImportError as error:
    raise UsageError(f'{error.name} is not installed; pip install "stlm-edge[export]"') from None

LABELS = ("normal", "anomalous")
SPARE_BYTES = 1024  # of metadata, for what is written on site
LINEAR, CONVOLUTIONS = ("FULLY_CONNECTED",), ("CONV_2D", "DEPTHWISE_CONV_2D")
INT8 = (  # layers that are int8, by operator and a regular expression for their names; the export takes what holds
    {LINEAR: ".*", CONVOLUTIONS: ".*"},
    {LINEAR: ".*"},
    {LINEAR: r"^(?!.*(mask_decoder|layers/3/blocks/\d+/mlp)).*"},
)


def to_tflite(model: STLM, path: Path, calibration: Calibration, provenance: dict[str, Any]) -> None:
    """Write the model, which is in evaluation mode and stays as it is, in float32.

    Raises JobError when the converter gives anything but a file that runs.
    """
    size = model.config.size
    with _silent(), quiet(), torch.no_grad():
        converted = litert_torch.convert(_MapOnly(model).eval(), sample_kwargs={"image": torch.zeros(1, size, size, 3)})
        content = converted.model_content()
    _save(content, path, _about(calibration, size, provenance))


def to_fp16(source: Path, path: Path, calibration: Calibration, size: int, provenance: dict[str, Any]) -> None:
    """Write `source`, which `to_tflite` made, with its weights in float16. Raises JobError like `to_tflite`."""
    recipe = recipe_manager.RecipeManager()
    for operator in LINEAR + CONVOLUTIONS:
        recipe.add_weight_only_config(".*", operator, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    _save(_quantized(source, recipe), path, _about(calibration, size, provenance))


def to_int8(
    source: Path,
    path: Path,
    calibration: Calibration,
    size: int,
    provenance: dict[str, Any],
    layers: dict[tuple[str, ...], str] = INT8[0],
) -> None:
    """Write `source`, which `to_tflite` made, with these layers in int8. Raises JobError like `to_tflite`."""
    recipe = recipe_manager.RecipeManager()
    for operators, names in layers.items():
        add = recipe.add_dynamic_config if operators == LINEAR else recipe.add_weight_only_config
        for operator in operators:
            add(names, operator, 8)
    _save(_quantized(source, recipe), path, _about(calibration, size, provenance))


class _MapOnly(nn.Module):
    """The network without its score; what does not depend on the picture is computed beforehand."""

    def __init__(self, model: STLM) -> None:
        super().__init__()
        self.model = folded(model)
        grid = model.config.size // 16
        encoding = self.model.prompt_encoder.pe_layer(grid, grid)
        self.model.prompt_encoder.pe_layer = _Constant(encoding)  # type: ignore[assignment]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"anomaly_map": self.model(image).anomaly_map}


class _Constant(nn.Module):
    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach())

    def forward(self, *arguments: int) -> Tensor:
        return self.value


def _about(calibration: Calibration, size: int, provenance: dict[str, Any]) -> dict[str, str]:
    return stamp(calibration, size) | {
        "stlm_edge.labels": json.dumps(LABELS),
        "stlm_edge.provenance": json.dumps(provenance, sort_keys=True, ensure_ascii=False),
    }


def _quantized(source: Path, recipe: recipe_manager.RecipeManager) -> bytes:
    with _silent(), quiet():
        made = quantizer.Quantizer(str(source), recipe.get_quantization_recipe())
        content = made.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model
    return bytes(content)


def _save(content: bytes, path: Path, about: dict[str, str]) -> None:
    """Name tensors by their modules, write with our metadata, and run what was written."""
    model = schema.ModelT.InitFromPackedBuf(content)
    _bring_inside(model, content)
    _check_operators(model)
    (graph,) = model.subgraphs
    names = {_readable(tensor.name.decode()) for tensor in graph.tensors}
    unique = len(names) == len(graph.tensors)
    for number, tensor in enumerate(graph.tensors):
        tensor.name = _readable(tensor.name.decode()) if unique else f"{_readable(tensor.name.decode())}#{number}"
    graph.tensors[graph.inputs[0]].name, graph.tensors[graph.outputs[0]].name = "image", "anomaly_map"
    model.description = "stlm-edge"
    for entry in model.metadata or []:
        if entry.name.decode() == METADATA_NAME:
            entry.name = f"{METADATA_NAME}.before"
    buffer, entry = schema.BufferT(), schema.MetadataT()
    text = encode(about)
    buffer.data = np.frombuffer(text.ljust(len(text) + SPARE_BYTES), np.uint8)
    entry.name, entry.buffer = METADATA_NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
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
    return re.sub(r"(?:\w+\.)+[A-Za-z0-9]+_(?=[a-z0-9])", "", name.split(";;")[0])


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the progress lines of litert-torch from the user."""
    from litert_torch import progress

    before, progress.config.show_progress = progress.config.show_progress, False
    try:
        yield
    finally:
        progress.config.show_progress = before
