"""Errors of a wrong converter in an ONNX file: each must make an export's gate fail."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

Damage = Callable[[onnx.ModelProto], None]
ConvertBy = Callable[[Damage | None], None]


def convert_to(file: Path, patch: pytest.MonkeyPatch, damage: Damage | None = None) -> None:
    """Let every conversion to ONNX, which takes long, give this file, damaged."""

    def to_onnx(model: object, path: Path, decision_threshold: object) -> None:
        shutil.copyfile(file, path)
        if damage:
            rewrite(path, damage)

    patch.setattr("stlm_edge.converters.onnx.to_onnx", to_onnx)


def damage_what_is_saved_by(converter: ModuleType, patch: pytest.MonkeyPatch, damage: Damage) -> None:
    def damaging(proto: onnx.ModelProto, path: Path, *arguments: object) -> None:
        save(proto, path, *arguments)
        rewrite(path, damage)

    save = converter.save
    patch.setattr(converter, "save", damaging)


def rewrite(path: Path, damage: Damage) -> None:
    proto = onnx.load(path)
    damage(proto)
    path.write_bytes(proto.SerializeToString())


def change_weight(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    (weight,) = (weight for weight in proto.graph.initializer if weight.name == name)
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)).astype(np.float32), name))


def missing_normalisation(proto: onnx.ModelProto) -> None:
    change_weight(proto, "pixel_mean", np.zeros_like)


def swapped_channels(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.input[:] = ["blue_first" if name == "image" else name for name in node.input]
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "backwards"))
    proto.graph.node.insert(0, helper.make_node("Gather", ["image", "backwards"], ["blue_first"], "swap", axis=3))


def transposed_map(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.output[:] = ["upright" if name == "anomaly_map" else name for name in node.output]
        node.input[:] = ["upright" if name == "anomaly_map" else name for name in node.input]
    proto.graph.node.append(helper.make_node("Transpose", ["upright"], ["anomaly_map"], "transpose", perm=[0, 1, 3, 2]))


def infinite_map(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.output[:] = ["finite" if name == "anomaly_map" else name for name in node.output]
        node.input[:] = ["finite" if name == "anomaly_map" else name for name in node.input]
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    proto.graph.node.append(helper.make_node("Div", ["finite", "zero"], ["anomaly_map"], "divide"))


def threshold_off_by_five_percent(proto: onnx.ModelProto) -> None:
    (entry,) = (entry for entry in proto.metadata_props if entry.key == "stlm_edge.threshold")
    entry.value = repr(float(entry.value) * 1.05)


def foreign_operator(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.output[:] = ["before" if name == "anomaly_map" else name for name in node.output]
        node.input[:] = ["before" if name == "anomaly_map" else name for name in node.input]
    proto.graph.node.append(helper.make_node("Round", ["before"], ["anomaly_map"], "round"))
