"""TensorRT from the bundle to the verdict, with test doubles of TensorRT and CUDA: calls, memory, kept engines.

The tests show that our calls fit together as documented, not that TensorRT accepts our files: no GPU has run them.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from tiny import write_tiny_bundle

import stlm_edge
from stlm_edge.bundle.engine import Device, check_version, engine_for, engine_path
from stlm_edge.bundle.parity import compare, problems
from stlm_edge.commands.build_engine import build_engine, main
from stlm_edge.errors import JobError, UsageError
from stlm_edge.runtimes import tensorrt
from stlm_edge.runtimes.tensorrt import Cuda, TensorRT

HERE = Path(__file__).parent
ORIN = Device("sm87x8", "10.3.0", "12.6")


@pytest.fixture(scope="module")
def libcudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler (gcc) for the double of libcudart")
    path = tmp_path_factory.mktemp("site-packages") / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.99"
    path.parent.mkdir(parents=True)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, HERE / "cudart.c"], check=True)
    return path


@pytest.fixture
def trt(libcudart: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HERE)
    import tensorrt_double

    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_double)
    monkeypatch.setattr(tensorrt_double, "built", [])
    monkeypatch.setattr(tensorrt, "_LIBRARIES", (str(libcudart),))
    return tensorrt_double


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle", target="jetson", runtime="tensorrt", precision="fp16")


@pytest.mark.parametrize("score_output", [True, False])
def test_bundle_gives_the_golden_outputs(trt: ModuleType, tmp_path: Path, score_output: bool) -> None:
    folder = write_tiny_bundle(tmp_path / "b", target="jetson", runtime="tensorrt", score_output=score_output)
    bundle = stlm_edge.open(folder)
    golden = list(bundle.golden())
    outputs = [bundle.runtime.run(image.tensor) for image in golden]
    threshold = bundle.manifest.decision_threshold.value
    parity, _ = compare(golden, outputs, threshold, bundle.manifest.verdict_delta)
    assert problems(parity, "fp32") == []
    assert len({score for _, score in outputs}) == len(outputs), "each image has its own score"
    for image in golden:
        assert bundle.predict(image.image_path).anomalous == (image.score > threshold)
    assert (bundle.runtime.name, bundle.runtime.size, len(trt.built)) == ("tensorrt", 64, 1)


def test_engine_is_kept_beside_the_bundle_and_reused(trt: ModuleType, bundle: Path) -> None:
    kept = build_engine(bundle)
    assert (kept.parent.parent, kept.parent.name) == (bundle.parent, "bundle.engines")
    assert kept.name.startswith("sm87x16-trt10.3.0-driver12.6")
    assert trt.built == [(bundle / "model.onnx").read_bytes()]
    written = kept.stat().st_mtime_ns
    assert build_engine(bundle) == engine_for(bundle / "model.onnx") == kept
    assert (len(trt.built), kept.stat().st_mtime_ns) == (1, written)
    stlm_edge.open(bundle)  # unchanged


@pytest.mark.parametrize("change", ["TensorRT", "model", "driver"])
def test_engine_is_built_again_after_a_change(
    change: str, trt: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_for(bundle / "model.onnx")
    if change == "TensorRT":
        monkeypatch.setattr(trt, "__version__", "10.7.0")
    elif change == "driver":
        monkeypatch.setattr(Cuda, "driver", lambda self: "12.8")
    else:
        proto = onnx.load(bundle / "model.onnx")
        proto.producer_name = "another"
        onnx.save(proto, bundle / "model.onnx")
    image = np.full((64, 64, 3), 128, np.uint8)
    assert TensorRT(engine_for(bundle / "model.onnx")).run(image)[0].shape == (64, 64)
    assert len(trt.built) == len(list((bundle.parent / "bundle.engines").iterdir())) == 2


def test_engine_that_cannot_be_loaded_is_refused(trt: ModuleType, bundle: Path) -> None:
    kept = build_engine(bundle)
    kept.write_bytes(kept.read_bytes()[10:])
    with pytest.raises(JobError, match=r"\.engine: TensorRT 10\.3\.0 cannot load the engine; .* delete it"):
        build_engine(bundle)


def test_rejected_onnx_file_reports_the_parser_s_reason(trt: ModuleType, bundle: Path) -> None:
    proto = onnx.load(bundle / "model.onnx")
    proto.graph.node[0].op_type = "Odd"
    onnx.save(proto, bundle / "model.onnx")
    with pytest.raises(JobError, match=r"TensorRT 10\.3\.0 cannot parse it: In node 7 with name: odd") as refused:
        engine_for(bundle / "model.onnx")
    assert "\n" not in str(refused.value)
    assert not (bundle.parent / "bundle.engines").exists()


def test_failed_build_is_reported(trt: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda *arguments: None)
    with pytest.raises(JobError, match=r"TensorRT 10\.3\.0 cannot build an engine"):
        engine_for(bundle / "model.onnx")


def test_failed_inference_is_reported(trt: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, image = TensorRT(build_engine(bundle)), np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="expected uint8 64×64×3"):
        runtime.run(image[:32])
    monkeypatch.setattr(trt.Context, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(JobError, match="TensorRT failed to run the engine"):
        runtime.run(image)


def test_engine_of_other_outputs_is_refused(trt: ModuleType, bundle: Path) -> None:
    proto = onnx.load(bundle / "model.onnx")
    proto.graph.output[1].name = proto.graph.node[-1].output[0] = "score"
    del proto.graph.output[0]
    onnx.save(proto, bundle / "model.onnx")
    with pytest.raises(UsageError, match=r"unexpected inputs or outputs: .*expected image UINT8 \[1, S, S, 3\]"):
        TensorRT(engine_for(bundle / "model.onnx"))


def test_lack_of_gpu_memory_is_reported(trt: ModuleType) -> None:
    with pytest.raises(JobError, match=r"CUDA: cudaMalloc failed \(out of memory\)"):
        Cuda().allocate(1 << 40)


def test_libcudart_of_pip_is_found(libcudart: Path, monkeypatch: pytest.MonkeyPatch, trt: ModuleType) -> None:
    monkeypatch.setattr(tensorrt, "_LIBRARIES", ("libcudart.so.none",))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.syspath_prepend(libcudart.parents[3])
    assert Cuda().gpu() == "sm87x16"


def test_missing_libcudart_is_reported(trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "_LIBRARIES", ("libcudart.so.none",))
    monkeypatch.setattr(tensorrt, "_from_packages", list)
    with pytest.raises(UsageError, match=r"the CUDA runtime cannot be loaded; expected one of libcudart\.so\.none"):
        Cuda()


def test_command_prints_where_the_engine_is(trt: ModuleType, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--bundle", str(bundle)])
    assert len(trt.built) == 1
    assert f"{bundle.name}.engines" in capsys.readouterr().out


# Without a GPU


@pytest.mark.parametrize("version", ["8.5.2", "8.6.2.3", "10.0.1"])
def test_old_tensorrt_is_refused(version: str) -> None:
    with pytest.raises(UsageError, match=f"TensorRT {version}: expected 10.3 or newer; .* update to JetPack 6.1"):
        check_version(version)


@pytest.mark.parametrize("version", ["10.3.0", "10.13.2.6", "11.5.0"])
def test_supported_tensorrt_is_accepted(version: str) -> None:
    check_version(version)


def test_engine_is_named_after_what_it_is_tied_to(tiny_bundle: Path, tmp_path: Path) -> None:
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


def test_bundle_of_another_target_has_no_engine(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="made for onnxruntime; expected a bundle of target jetson or desktop-gpu"):
        build_engine(tiny_bundle)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_missing_tensorrt_is_reported(tiny_bundle: Path) -> None:
    for use in (engine_for, TensorRT):
        with pytest.raises(UsageError, match=r"tensorrt cannot be imported .* JetPack 6.1 .* pip install tensorrt"):
            use(tiny_bundle / "model.onnx")
