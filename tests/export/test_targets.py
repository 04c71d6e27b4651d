"""The table of targets."""

import pytest

from stlm_edge.errors import UsageError
from stlm_edge.export.targets import TARGETS, find


def test_device_class_has_one_row_per_converter() -> None:
    rows = [(target.name, target.via) for target in TARGETS]
    assert len(set(rows)) == len(rows)
    assert [name for name, via in rows if via is None] == ["cpu", "jetson", "desktop-gpu", "android", "ios", "web"]


def test_other_converter_is_chosen_by_name() -> None:
    target, precision = find("cpu", via="openvino")
    assert (target.artifact, target.runtime, precision) == ("model.openvino", "openvino", "int8")
    assert find("cpu", "fp16", "openvino")[1] == "fp16"
    target, precision = find("desktop-gpu", via="torch-tensorrt")
    assert (target.artifact, target.runtime, precision) == ("model.engine", "tensorrt", "fp16")
    with pytest.raises(UsageError, match=r"desktop-gpu: precision int8 .*expected fp16, fp32"):
        find("desktop-gpu", "int8", "torch-tensorrt")
    with pytest.raises(UsageError, match=r"cpu: --via litert .*expected openvino"):
        find("cpu", via="litert")
    with pytest.raises(UsageError, match=r"android: --via openvino .*expected no --via"):
        find("android", via="openvino")


def test_target_has_default_precision() -> None:
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


def test_unknown_target_is_refused() -> None:
    with pytest.raises(UsageError, match="toaster: unknown, expected cpu, jetson, desktop-gpu, android, ios, web"):
        find("toaster")


def test_unsupported_precision_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cpu: precision fp16 .*expected int8, fp32"):
        find("cpu", "fp16")
