"""Conversion to an OpenVINO IR, a folder of `model.xml` and `model.bin`, from the ONNX file of `to_onnx`.

fp16: weights only, computed in float32. int8: linear layers with static ranges from the quantization set (NNCF), in
7 bits so that processors without VNNI do not saturate; convolutions only store int8 weights, and the others are
float16. The first convolutions and stages stay in float32. The same ONNX file and images always give the same bytes.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.converters import quiet
from stlm_edge.converters.onnx import FIRST_STAGE
from stlm_edge.converters.onnx_graph import LARGE, TABLE
from stlm_edge.formats import metadata_entries
from stlm_edge.formats.openvino import GRAPH
from stlm_edge.runtimes.openvino import import_openvino
from stlm_edge.threshold import DecisionThreshold

openvino = import_openvino()


def to_openvino(source: Path, folder: Path, threshold: DecisionThreshold, half: bool = False) -> None:
    """Write the ONNX file `source` as an IR, with fp16 weights if `half`."""
    _save(_read(source), folder, threshold, half)


def to_int8(
    source: Path,
    folder: Path,
    threshold: DecisionThreshold,
    images: Sequence[np.ndarray],
    in_float: Sequence[str] = (),
) -> None:
    """Quantize the file of `to_onnx` with ranges from `images`, uint8 S×S×3 each.

    Layers whose modules' names begin with one of `in_float` stay in float.
    """
    with quiet():
        import nncf
    kept = tuple(name.replace(".", "/") for name in in_float)
    model = _read(source)
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    others = [
        name
        for name, node in nodes.items()
        if node.get_type_name() not in ("Constant", "Parameter") and (not _is_linear(node) or name.startswith(kept))
    ]
    with quiet():
        model = nncf.quantize(
            model,
            nncf.Dataset(list(images), lambda image: image[None]),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=others, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
        nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
        others = [
            name
            for name, node in nodes.items()
            if node.get_type_name() in ("MatMul", "Gather") or re.search(FIRST_STAGE, name) or name.startswith(kept)
        ]
        model = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT8_SYM,
            ignored_scope=nncf.IgnoredScope(names=others, validate=False),
        )
    _save(model, folder, threshold, half=True)


def _read(source: Path) -> Any:
    with quiet():
        model = openvino.convert_model(str(source))
    _rename(model)
    return model


def _save(model: Any, folder: Path, threshold: DecisionThreshold, half: bool) -> None:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.f32:
            _shrink(node, half)
    _rename(model)
    model.set_friendly_name("stlm")
    for name in list(model.get_rt_info().keys()):
        del model.get_rt_info()[name]
    size = model.input().get_shape()[1]
    for key, value in metadata_entries(threshold, size).items():
        model.set_rt_info(value, key.split("."))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)


def _rename(model: Any) -> None:
    """Renumber the nodes that are named after a counter of the process."""
    for number, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Za-z_]+_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")


def _shrink(node: Any, half: bool) -> None:
    """Replace a large constant by a table and indices into it, or else by float16 if `half`."""
    from openvino import opset13 as op

    users = list(node.output(0).get_target_inputs())
    values = node.data
    if values.size <= LARGE or any(re.search(FIRST_STAGE, user.get_node().get_friendly_name()) for user in users):
        return
    smaller = None
    if values.ndim >= 3 and values.size == np.prod(values.shape[-3:]):
        table, indices = np.unique(values.reshape(values.shape[-3], -1), axis=1, return_inverse=True)
        if table.shape[1] <= TABLE:
            indices = op.convert(op.constant(indices.reshape(values.shape[-2:]).astype(np.uint8)), "i32")
            smaller = op.gather(op.constant(table), indices, op.constant(np.int64(1)))
            if values.ndim > 3:
                smaller = op.reshape(smaller, op.constant(np.array(values.shape)), False)
    if smaller is None and half:
        smaller = op.convert(op.constant(values.astype(np.float16)), "f32")
    if smaller is not None:
        for user in users:
            user.replace_source_output(smaller.output(0))


def _is_linear(node: Any) -> bool:
    return node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant"
