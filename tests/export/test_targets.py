"""The table of targets: what can be exported now, and what is said of the rest."""

import pytest

from stlm_edge.errors import UsageError
from stlm_edge.export.targets import TARGETS, find


def test_every_device_class_has_one_row_by_each_converter() -> None:
    rows = [(target.name, target.via) for target in TARGETS]
    assert len(set(rows)) == len(rows)
    assert [name for name, via in rows if via is None] == ["cpu", "jetson", "desktop-gpu", "android", "ios", "web"]


def test_another_converter_is_asked_for_by_name() -> None:
    target, precision = find("cpu", via="openvino")
    assert (target.artifact, target.runtime, precision) == ("model.openvino", "openvino", "int8")
    assert find("cpu", "fp16", "openvino")[1] == "fp16"
    target, precision = find("desktop-gpu", via="torch-tensorrt")
    assert (target.artifact, target.runtime, precision) == ("model.engine", "tensorrt", "fp16")
    with pytest.raises(UsageError, match="target desktop-gpu: precision int8 is not among those it has: fp16, fp32"):
        find("desktop-gpu", "int8", "torch-tensorrt")
    with pytest.raises(UsageError, match="target cpu: --via litert is not among those it has: openvino"):
        find("cpu", via="litert")
    with pytest.raises(UsageError, match="target android: --via openvino is not among those it has: none"):
        find("android", via="openvino")


def test_a_target_has_a_default_precision() -> None:
    target, precision = find("cpu")
    assert (target.artifact, target.runtime, precision) == ("model.onnx", "onnxruntime", "int8")
    assert (target.input_dtype, target.score_output) == ("uint8", True)
    assert find("cpu", "fp32")[1] == "fp32"
    target, precision = find("android")
    assert (target.artifact, target.runtime, precision) == ("model.tflite", "litert", "int8")
    assert (target.input_dtype, target.score_output) == ("float32", False)
    target, precision = find("ios")
    assert (target.artifact, target.runtime, precision) == ("model.mlpackage", "coreml", "fp16")
    assert (target.input_dtype, target.score_output) == ("uint8", True)

    target, precision = find("jetson")
    assert (target.artifact, target.runtime, precision) == ("model.onnx", "tensorrt", "fp16")
    target, precision = find("web")
    assert (target.runtime, precision, target.exports_all) == ("onnxruntime-web", "fp16", True)


def test_an_unknown_target_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="toaster: unknown; there are cpu, jetson, desktop-gpu, android, ios, web"):
        find("toaster")


def test_a_precision_that_the_target_lacks_is_answered_with_those_it_has() -> None:
    with pytest.raises(UsageError, match="target cpu: precision fp16 is not among those it has: int8, fp32"):
        find("cpu", "fp16")
