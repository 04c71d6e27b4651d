"""The exported TFLite file: inputs and outputs, precision of weights, metadata, identical bytes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from tiny import tiny_image
from tiny_tflite import tiny_model, write_tflite

from stlm_edge.converters import tflite as converter
from stlm_edge.errors import JobError
from stlm_edge.export.pipeline import Exported
from stlm_edge.formats import metadata_entries
from stlm_edge.formats.tflite import read_metadata
from stlm_edge.images import load
from stlm_edge.model import checkpoint
from stlm_edge.model.checkpoint import Checkpoint
from stlm_edge.runtimes.litert import LiteRT

PRECISIONS = ("fp32", "fp16", "int8")
OPERATORS = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
KINDS = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}


@pytest.fixture(scope="module")
def files(exported_for_android: dict[str, Exported]) -> dict[str, Path]:
    return {precision: done.folder / "model.tflite" for precision, done in exported_for_android.items()}


@pytest.fixture
def opened(small_checkpoint: Path) -> Checkpoint:
    return checkpoint.load(small_checkpoint)


def model_in(path: Path) -> Any:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes())


def weights(model: Any) -> dict[str, tuple[str, str]]:
    """Operator and type of the weights of each linear layer and convolution, by the layer's name."""
    (graph,) = model.subgraphs
    dequantized = {}
    found = {}
    for operator in graph.operators:
        kind = OPERATORS[model.operatorCodes[operator.opcodeIndex].builtinCode]
        if kind == "DEQUANTIZE":
            dequantized[operator.outputs[0]] = operator.inputs[0]
        if kind in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"):
            weight = dequantized.get(operator.inputs[1], operator.inputs[1])
            found[graph.tensors[operator.outputs[0]].name.decode()] = kind, KINDS[graph.tensors[weight].type]
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_graph_has_documented_inputs_and_outputs(files: dict[str, Path], precision: str) -> None:
    interpreter = Interpreter(str(files[precision]))
    (image,), (anomaly_map,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (image["name"], image["dtype"], image["shape"].tolist()) == ("image", np.float32, [1, 64, 64, 3])
    assert (anomaly_map["name"], anomaly_map["dtype"]) == ("anomaly_map", np.float32)
    assert anomaly_map["shape"].tolist() == [1, 1, 64, 64]
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["anomaly_map"]}}
    model = model_in(files[precision])
    assert len(model.subgraphs) == 1
    operators = {OPERATORS[code.builtinCode] for code in model.operatorCodes}
    assert not [name for name in operators if name == "CUSTOM" or name.startswith("STABLEHLO")]
    assert not [tensor.name for tensor in model.subgraphs[0].tensors if len(tensor.shape) > 4]


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 5e-3), ("int8", 0.2)])
def test_outputs_agree_with_trained_model(
    files: dict[str, Path], opened: Checkpoint, precision: str, limit: float
) -> None:
    runtime = LiteRT(files[precision], threads=1)
    for seed in range(3):
        image = load(tiny_image(seed, defect=seed > 0), 64)
        with torch.inference_mode():
            expected = opened.model(torch.from_numpy(image)[None])
        anomaly_map, score = runtime.run(image)
        assert np.abs(anomaly_map - expected.anomaly_map[0, 0].numpy()).max() < limit
        assert abs(score - expected.score.item()) < limit


def test_weights_have_the_precision_of_the_file(files: dict[str, Path], tmp_path: Path) -> None:
    made = {"fp32": files["fp32"], "fp16": tmp_path / "fp16.tflite", "int8": tmp_path / "int8.tflite"}
    converter.to_fp16(files["fp32"], made["fp16"])
    converter.to_int8(files["fp32"], made["int8"])
    by_precision = {precision: weights(model_in(path)) for precision, path in made.items()}
    names = set(by_precision["fp32"])
    assert set(by_precision["fp16"]) == set(by_precision["int8"]) == names
    assert {kind for _, kind in by_precision["fp32"].values()} == {"FLOAT32"}
    first = {name for name in names if "/patch_embed/" in f"/{name}" or "/layers/0/" in name}
    assert len(first) == 2 * (2 + 3 + 3)
    for precision, kind in (("fp16", "FLOAT16"), ("int8", "INT8")):
        found = by_precision[precision]
        assert {found[name][1] for name in first} == {"FLOAT32"}
        assert Counter(found[name][1] for name in names - first) == {kind: len(names) - len(first)}


def test_linear_layers_compute_in_int8_and_convolutions_only_store_it(files: dict[str, Path], tmp_path: Path) -> None:
    converter.to_int8(files["fp32"], tmp_path / "int8.tflite")
    model = model_in(tmp_path / "int8.tflite")
    (graph,) = model.subgraphs
    for operator in graph.operators:
        kind = OPERATORS[model.operatorCodes[operator.opcodeIndex].builtinCode]
        if kind == "FULLY_CONNECTED":
            weight = graph.tensors[operator.inputs[1]]
            assert KINDS[weight.type] == "INT8"
            assert len(weight.quantization.scale) == weight.shape[0], "one scale per output channel"
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            assert KINDS[graph.tensors[operator.inputs[1]].type] == "FLOAT32"


def test_named_layers_stay_in_float(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    kept = ("plain.layers.1.blocks.0.attn.", "plain.layers.3.blocks.0.mlp.fc2", "denoising.neck.")
    converter.to_int8(files["fp32"], path, kept)
    found = weights(model_in(path))
    named = {name for name in found if name.startswith(tuple(name.replace(".", "/") for name in kept))}
    assert len(named) == 2 + 1 + 2
    assert {found[name][1] for name in named} == {"FLOAT16"}
    assert {kind for name, (_, kind) in found.items() if name.startswith("plain/layers/3/blocks/0/mlp/fc1")} == {"INT8"}
    assert {kind for name, (_, kind) in found.items() if name.startswith("plain/neck")} == {"INT8"}
    (graph,) = model_in(path).subgraphs
    biases = {tensor.name.decode(): KINDS[tensor.type] for tensor in graph.tensors if tensor.name.endswith(b"/stored")}
    assert sorted(biases.values()) == ["FLOAT16"] + ["INT8"] * (len(biases) - 1)


def test_constants_are_computed_at_export(files: dict[str, Path]) -> None:
    model = model_in(files["fp32"])
    operators = {OPERATORS[code.builtinCode] for code in model.operatorCodes}
    assert "GELU" in operators
    assert not operators & {"SIN", "COS", "GATHER", "GATHER_ND", "TOPK_V2"}


def test_tensors_are_named_after_modules(files: dict[str, Path]) -> None:
    names = weights(model_in(files["fp32"]))
    assert any(name.startswith("plain/layers/1/blocks/0/mlp/fc1") for name in names)
    assert not [name for name in names if "stlm_edge" in name or "torch" in name]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_file_alone_holds_threshold_and_provenance(
    files: dict[str, Path], exported_for_android: dict[str, Exported], precision: str
) -> None:
    metadata, manifest = read_metadata(files[precision]), exported_for_android[precision].manifest
    assert metadata.items() >= metadata_entries(manifest.decision_threshold, 64).items()
    assert json.loads(metadata["stlm_edge.labels"]) == ["normal", "anomalous"]
    provenance = json.loads(metadata["stlm_edge.provenance"])
    assert provenance["checkpoint_sha256"]
    assert manifest.provenance.items() >= provenance.items()
    buffers = [entry.name for entry in model_in(files[precision]).metadata if entry.name.startswith(b"stlm_edge")]
    assert buffers == [b"stlm_edge"]


def test_file_holds_no_trace_of_the_machine(files: dict[str, Path]) -> None:
    model = model_in(files["fp32"])
    texts = [tensor.name for tensor in model.subgraphs[0].tensors] + [model.description]
    texts += [bytes(model.buffers[entry.buffer].data) for entry in model.metadata]
    for trace in (b".py", str(Path(torch.__file__).parent).encode(), str(Path.home()).encode() + b"/"):
        assert not [text for text in texts if trace in text]


@pytest.mark.slow
def test_repeated_export_gives_the_same_bytes(
    exported_for_android: dict[str, Exported], opened: Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    decision_threshold, files = opened.decision_threshold, {name: tmp_path / f"{name}.tflite" for name in PRECISIONS}
    exported = {precision: done.folder / "model.tflite" for precision, done in exported_for_android.items()}
    provenance = json.loads(read_metadata(exported["fp32"])["stlm_edge.provenance"])
    kept = exported_for_android["int8"].candidates[-1].kept_in_float
    layers = converter.FP16[len(exported_for_android["fp16"].candidates) - 1]
    converter.to_tflite(opened.model, files["fp32"], decision_threshold, provenance)
    converter.to_int8(files["fp32"], files["int8"], kept)
    converter.to_fp16(files["fp32"], files["fp16"], layers)
    for precision, path in files.items():
        assert path.read_bytes() == exported[precision].read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted(files.values())
    assert capfd.readouterr() == ("", ""), "the converter printed something"


@pytest.mark.parametrize(("operator", "named"), [("STABLEHLO_SORT", "STABLEHLO_SORT"), ("CUSTOM", "CUSTOM")])
def test_foreign_operators_are_refused(tmp_path: Path, operator: str, named: str) -> None:
    model = tiny_model(64)
    model.operatorCodes[1].builtinCode = getattr(schema.BuiltinOperator, operator)
    write_tflite(tmp_path / "foreign.tflite", model)
    with pytest.raises(JobError, match=f"1 graphs with the operators {named}"):
        converter.save((tmp_path / "foreign.tflite").read_bytes(), tmp_path / "model.tflite", {})
    assert not (tmp_path / "model.tflite").exists()


def test_file_that_does_not_run_is_refused(tmp_path: Path) -> None:
    model = tiny_model(64)
    code = model.operatorCodes[1]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.LSTM
    write_tflite(tmp_path / "other.tflite", model)
    with pytest.raises(JobError, match="the converter wrote a file that does not run: "):
        converter.save((tmp_path / "other.tflite").read_bytes(), tmp_path / "model.tflite", {})
    assert [path.name for path in tmp_path.iterdir()] == ["other.tflite"]
