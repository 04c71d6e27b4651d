"""The TensorRT runtime from the bundle to the verdict, by a stand-in for TensorRT and for CUDA: calls, memory, cache.

It shows that our calls fit together as documented, not that TensorRT takes our files: no GPU has run them.
"""

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
from stlm_edge.bundle.parity import compare, problems
from stlm_edge.commands import build_engine as build_engine_command
from stlm_edge.errors import JobError, UsageError
from stlm_edge.runtimes import tensorrt
from stlm_edge.runtimes.tensorrt import Cuda, TensorRT, build_engine

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler (gcc) for the stand-in of libcudart")


@pytest.fixture(scope="module")
def libcudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site-packages") / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.99"
    path.parent.mkdir(parents=True)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, HERE / "cudart.c"], check=True)
    return path


@pytest.fixture
def trt(libcudart: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HERE)
    import standin_tensorrt

    monkeypatch.setitem(sys.modules, "tensorrt", standin_tensorrt)
    monkeypatch.setattr(standin_tensorrt, "built", [])
    monkeypatch.setattr(tensorrt, "_LIBRARIES", (str(libcudart),))
    return standin_tensorrt


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle", target="jetson", runtime="tensorrt", precision="fp16")


@pytest.mark.parametrize("score_output", [True, False])
def test_a_bundle_is_built_and_gives_the_golden_answers(trt: ModuleType, tmp_path: Path, score_output: bool) -> None:
    folder = write_tiny_bundle(tmp_path / "b", target="jetson", runtime="tensorrt", score_output=score_output)
    bundle = stlm_edge.open(folder)
    golden = list(bundle.golden())
    answers = [bundle.runtime.run(image.tensor) for image in golden]
    threshold = bundle.manifest.decision_threshold.value
    parity, _ = compare(golden, answers, threshold, bundle.manifest.verdict_delta)
    assert problems(parity, "fp32") == []
    assert len({score for _, score in answers}) == len(answers), "each image has its own answer"
    for image in golden:
        assert bundle.predict(image.image_path).anomalous == (image.score > threshold)
    assert (bundle.runtime.name, bundle.runtime.size, len(trt.built)) == ("tensorrt", 64, 1)


def test_an_engine_is_kept_beside_the_bundle_and_found_again(trt: ModuleType, bundle: Path) -> None:
    folder = build_engine(bundle)
    (kept,) = folder.iterdir()
    assert (folder.parent, folder.name) == (bundle.parent, "bundle.engines")
    assert kept.name.startswith("sm87x16-trt10.3.0-driver12.6")
    assert trt.built == [(bundle / "model.onnx").read_bytes()]
    written = kept.stat().st_mtime_ns
    build_engine(bundle)
    TensorRT(bundle / "model.onnx")
    assert (len(trt.built), kept.stat().st_mtime_ns) == (1, written)
    stlm_edge.open(bundle)  # is as it was


@pytest.mark.parametrize("change", ["TensorRT", "model", "driver"])
def test_what_an_engine_is_tied_to_has_changed_so_it_is_built_anew(
    change: str, trt: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TensorRT(bundle / "model.onnx")
    if change == "TensorRT":
        monkeypatch.setattr(trt, "__version__", "10.7.0")
    elif change == "driver":
        monkeypatch.setattr(Cuda, "driver", lambda self: "12.8")
    else:
        proto = onnx.load(bundle / "model.onnx")
        proto.producer_name = "another"
        onnx.save(proto, bundle / "model.onnx")
    image = np.full((64, 64, 3), 128, np.uint8)
    assert TensorRT(bundle / "model.onnx").run(image)[0].shape == (64, 64)
    assert len(trt.built) == len(list((bundle.parent / "bundle.engines").iterdir())) == 2


def test_a_kept_engine_that_cannot_be_loaded_is_one_line(trt: ModuleType, bundle: Path) -> None:
    (kept,) = build_engine(bundle).iterdir()
    kept.write_bytes(kept.read_bytes()[10:])
    with pytest.raises(JobError, match=r"TensorRT cannot load the engine; delete .*bundle\.engines$"):
        TensorRT(bundle / "model.onnx")


def test_a_refused_file_is_one_line_with_tensorrt_s_own_words(trt: ModuleType, bundle: Path) -> None:
    proto = onnx.load(bundle / "model.onnx")
    proto.graph.node[0].op_type = "Odd"
    onnx.save(proto, bundle / "model.onnx")
    with pytest.raises(JobError) as refusal:
        TensorRT(bundle / "model.onnx")
    assert "model.onnx: TensorRT 10.3.0 cannot read it: In node 7 with name: odd (parseNode): UNSUPP" in str(
        refusal.value
    )
    assert "\n" not in str(refusal.value)
    assert not (bundle.parent / "bundle.engines").exists()


def test_an_engine_that_cannot_be_built_is_one_line(
    trt: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda *arguments: None)
    with pytest.raises(JobError, match=r"TensorRT 10\.3\.0 cannot build an engine; trtexec --verbose tells why"):
        TensorRT(bundle / "model.onnx")


def test_an_engine_that_fails_is_one_line(trt: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, image = TensorRT(bundle / "model.onnx"), np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="expected uint8 64×64×3"):
        runtime.run(image[:32])
    monkeypatch.setattr(trt.Context, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(JobError, match="TensorRT failed to run the engine"):
        runtime.run(image)


def test_an_artifact_of_another_contract_is_refused(trt: ModuleType, bundle: Path) -> None:
    proto = onnx.load(bundle / "model.onnx")
    proto.graph.output[1].name = proto.graph.node[-1].output[0] = "score"
    del proto.graph.output[0]
    onnx.save(proto, bundle / "model.onnx")
    with pytest.raises(UsageError, match=r"another graph: found .*expected image UINT8 \(1, S, S, 3\)"):
        TensorRT(bundle / "model.onnx")


def test_memory_that_cuda_lacks_is_one_line(trt: ModuleType) -> None:
    with pytest.raises(JobError, match=r"CUDA: cudaMalloc failed \(out of memory\)"):
        Cuda().allocate(1 << 40)


def test_libcudart_is_found_where_pip_puts_it(
    libcudart: Path, monkeypatch: pytest.MonkeyPatch, trt: ModuleType
) -> None:
    monkeypatch.setattr(tensorrt, "_LIBRARIES", ("libcudart.so.none",))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.syspath_prepend(libcudart.parents[3])
    assert Cuda().gpu() == "sm87x16"


def test_without_libcudart_one_line_says_where_it_is_looked_for(
    trt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "_LIBRARIES", ("libcudart.so.none",))
    monkeypatch.setattr(tensorrt, "_from_packages", list)
    with pytest.raises(UsageError, match=r"the CUDA runtime cannot be loaded; expected one of libcudart\.so\.none"):
        Cuda()


def test_the_command_says_where_engines_are(trt: ModuleType, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_engine_command.main(["--bundle", str(bundle)])
    assert len(trt.built) == 1
    assert f"{bundle.name}.engines" in capsys.readouterr().out
