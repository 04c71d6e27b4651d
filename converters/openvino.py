"""STLM as an OpenVINO IR, a folder of `model.xml` and `model.bin`, made from the ONNX file that `to_onnx` writes.

Input and outputs are those of the ONNX file. fp16: the weights, computed in float32. int8: linear layers with static
ranges from the quantization set (NNCF); weights in 7 bits, so that processors without VNNI don't saturate; convolutions
store int8 weights alone, the rest float16. In float32 stay the first convolutions and the first stages, where nearly
all of the map's error came from. Where the gate does not hold, the export keeps convolutions' weights in float first:
they are half of the score's error. Why convolutions are not computed in int8: benchmarks/results, `convolutions.json`.
Attention biases are kept as tables that are gathered at load: 5×196 values instead of 5×196×196.

The same ONNX file and images give the same bytes.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.converters.onnx import quiet, spoken
from stlm_edge.errors import UsageError
from stlm_edge.formats import metadata_entries
from stlm_edge.formats.openvino import GRAPH
from stlm_edge.runtimes.openvino import import_openvino
from stlm_edge.threshold import DecisionThreshold

openvino = import_openvino()

IN_FLOAT32 = "/(patch_embed|stage0)/"
SMALL = 4096  # values; what is smaller stays in float32
PALETTE = 256


def to_openvino(
    source: Path, folder: Path, decision_threshold: DecisionThreshold, size: int, half: bool = False
) -> None:
    """Write the ONNX file `source` as an IR, `half`: with its weights in fp16. Raises UsageError without openvino."""
    _save(_read(source), folder, decision_threshold, size, half)


def to_int8(
    source: Path,
    folder: Path,
    decision_threshold: DecisionThreshold,
    size: int,
    images: Sequence[np.ndarray],
    in_float: Sequence[str] = (),
) -> None:
    """Quantize the ONNX file `source`; `images`, uint8 S×S×3, give the ranges.

    `in_float`: layers whose modules' names begin with one of these stay in float.
    """
    kept = tuple(spoken(name) for name in in_float)
    try:
        with quiet():
            import nncf
    except ImportError as error:
        raise UsageError(f'{error.name} is not installed; pip install "stlm-edge[export]"') from None
    model = _read(source)
    nodes = model.get_ordered_ops()
    names = [node.get_friendly_name() for node in nodes if node.get_type_name() not in ("Constant", "Parameter")]
    chosen = {
        node.get_friendly_name() for node in nodes if _is_linear(node) and not node.get_friendly_name().startswith(kept)
    }
    with quiet():
        model = nncf.quantize(
            model,
            nncf.Dataset(list(images), lambda image: image[None]),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=[name for name in names if name not in chosen], validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
        nodes = model.get_ordered_ops()
        others = [
            node.get_friendly_name()
            for node in nodes
            if node.get_type_name() in ("MatMul", "Gather")
            or re.search(IN_FLOAT32, node.get_friendly_name())
            or node.get_friendly_name().startswith(kept)
        ]
        model = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT8_SYM,
            ignored_scope=nncf.IgnoredScope(names=others, validate=False),
        )
    _save(model, folder, decision_threshold, size, half=True)


def _read(source: Path) -> Any:
    with quiet():
        model = openvino.convert_model(str(source))
    _rename(model)
    return model


def _save(model: Any, folder: Path, decision_threshold: DecisionThreshold, size: int, half: bool) -> None:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.f32:
            _shrink(node, half)
    _rename(model)
    model.set_friendly_name("stlm")
    for name in list(model.get_rt_info().keys()):
        del model.get_rt_info()[name]
    for key, value in metadata_entries(decision_threshold, size).items():
        model.set_rt_info(value, key.split("."))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)


def _rename(model: Any) -> None:
    """Number anew what was named after a counter of the process."""
    for number, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Za-z_]+_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")


def _shrink(node: Any, half: bool) -> None:
    """Replace a large constant by what takes less room: a table and where its values go, or float16."""
    from openvino import opset13 as op

    users = list(node.output(0).get_target_inputs())
    values = node.data
    if values.size <= SMALL or any(re.search(IN_FLOAT32, user.get_node().get_friendly_name()) for user in users):
        return
    smaller = None
    if values.ndim >= 3 and values.size == np.prod(values.shape[-3:]):
        table, places = np.unique(values.reshape(values.shape[-3], -1), axis=1, return_inverse=True)
        if table.shape[1] <= PALETTE:
            places = op.convert(op.constant(places.reshape(values.shape[-2:]).astype(np.uint8)), "i32")
            smaller = op.gather(op.constant(table), places, op.constant(np.int64(1)))
            if values.ndim > 3:
                smaller = op.reshape(smaller, op.constant(np.array(values.shape)), False)
    if smaller is None and half:
        smaller = op.convert(op.constant(values.astype(np.float16)), "f32")
    if smaller is not None:
        for user in users:
            user.replace_source_output(smaller.output(0))


def _is_linear(node: Any) -> bool:
    return node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant"
