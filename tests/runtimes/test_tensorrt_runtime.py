"""The part of the TensorRT runtime that needs no GPU: what is refused and how, and where engines are kept."""

import importlib.util
from pathlib import Path

import pytest

from stlm_edge.errors import UsageError
from stlm_edge.runtimes.tensorrt import Device, TensorRT, build_engine, check_version, engine_path, trtexec_line

ORIN = Device("sm87x8", "10.3.0", "12.6")


@pytest.mark.parametrize("version", ["8.5.2", "8.6.2.3", "10.0.1"])
def test_a_tensorrt_that_is_too_old_is_refused_with_the_reason(version: str) -> None:
    with pytest.raises(UsageError, match=r"opset 17 and has no Gelu; update to JetPack 6.1") as refusal:
        check_version(version)
    assert f"TensorRT {version}: expected 10.3 or newer; 8.x (JetPack 5 and 6.0)" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("version", ["10.3.0", "10.13.2.6", "11.5.0"])
def test_a_tensorrt_that_serves_is_taken(version: str) -> None:
    check_version(version)


def test_an_engine_stands_beside_the_bundle_under_what_it_is_tied_to(tiny_bundle: Path, tmp_path: Path) -> None:
    artifact = tiny_bundle / "model.onnx"
    path = engine_path(artifact, ORIN)
    assert path.parent == tiny_bundle.resolve().with_name("tiny.engines")
    assert path.name.startswith("sm87x8-trt10.3.0-driver12.6-")
    others = [ORIN._replace(gpu="sm87x16"), ORIN._replace(tensorrt="10.7.0"), ORIN._replace(driver="12.8")]
    other_file = tmp_path / "model.onnx"
    other_file.write_bytes(artifact.read_bytes() + b" ")
    assert len({path, *(engine_path(artifact, other) for other in others), engine_path(other_file, ORIN)}) == 5
    odd = engine_path(artifact, Device("a/../b", "10.3 rc", "R36 (release), REVISION: 4.7"))
    assert odd.parent == path.parent
    assert " " not in odd.name


def test_a_bundle_of_another_target_gets_no_engine(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="a bundle for onnxruntime, expected one of target jetson or desktop-gpu"):
        build_engine(tiny_bundle)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_without_tensorrt_one_line_says_where_it_comes_from(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"tensorrt cannot be imported .* JetPack 6.1 .* pip install tensorrt"):
        TensorRT(tiny_bundle / "model.onnx")


def test_the_line_for_those_without_python_types_strongly() -> None:
    assert trtexec_line() == "trtexec --onnx=model.onnx --stronglyTyped --saveEngine=model.engine"
