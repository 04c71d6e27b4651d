"""The programs in README.md and docs/embed.md, taken out of the page: run, or compiled where a compiler is at hand."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from PIL import Image
from tiny import TINY_SIZE, tiny_image, write_tiny_onnx

import stlm_edge

ROOT = Path(__file__).parents[2]
HEADERS = [Path("/usr/include/onnxruntime"), ROOT / "build" / "onnxruntime"]
WITHOUT_TORCH = "import sys; sys.modules.update(dict.fromkeys(('torch', 'pydantic', 'typer', 'rich'), None))\n"


def snippets(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "docs/embed.md"])
def test_python_needs_no_torch(page: str, tiny_bundle: Path, tmp_path: Path) -> None:
    (program,) = snippets(page, "python")
    shutil.copytree(tiny_bundle, tmp_path / "bundles" / "bracket")
    tiny_image(303, defect=True).save(tmp_path / "part.png")
    (tmp_path / "program.py").write_text(WITHOUT_TORCH + program)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = stlm_edge.open(tiny_bundle).predict(tmp_path / "part.png")
    verdict, score, threshold, *_ = done.stdout.split()
    assert verdict in ((str(expected.anomalous),) if page == "README.md" else ("anomalous", "normal"))
    assert (verdict in ("True", "anomalous")) == expected.anomalous
    assert (float(score), float(threshold)) == (expected.score, expected.threshold)


@pytest.fixture(scope="module")
def in_cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ program, compiled with the library of onnxruntime's wheel."""
    folder = tmp_path_factory.mktemp("cpp")
    headers = next((each for each in HEADERS if (each / "onnxruntime_cxx_api.h").is_file()), None)
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not (shutil.which("g++") and headers and libraries):
        pytest.skip("needs g++, onnxruntime's headers (make build/onnxruntime) and its wheel for Linux")
    (program,) = snippets("docs/embed.md", "cpp")
    (folder / "verdict.cpp").write_text(program)
    (folder / "libonnxruntime.so").symlink_to(libraries[-1])
    (folder / libraries[-1].name).symlink_to(libraries[-1])
    (folder / "libonnxruntime.so.1").symlink_to(libraries[-1])
    given = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-isystem", headers]
    linked = ["-L", folder, "-lonnxruntime", f"-Wl,-rpath,{folder}", "-o", folder / "verdict"]
    command = ["g++", *given, folder / "verdict.cpp", *linked]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "verdict"


def ran(program: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_cpp_gives_the_golden_verdicts(in_cpp: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, model = stlm_edge.open(tiny_bundle), tiny_bundle / "model.onnx"
    threshold, delta = bundle.manifest.decision_threshold.value, bundle.manifest.verdict_delta
    for golden in bundle.golden():
        image = Image.open(golden.image_path).convert("RGB")
        (tmp_path / "image.rgb").write_bytes(image.tobytes())
        done = ran(in_cpp, model, tmp_path / "image.rgb", image.width, image.height)
        assert done.returncode == 0, done.stderr
        verdict, score, said, highest = done.stdout.split()
        assert float(said) == threshold
        assert float(score) == pytest.approx(golden.score, abs=2e-3)  # its resize may be off by one grey level
        assert float(highest) == pytest.approx(golden.map.max(), abs=0.05)
        if abs(golden.score - threshold) > delta:
            assert verdict == ("anomalous" if golden.score > threshold else "normal"), golden.name
        (tmp_path / "square.rgb").write_bytes(golden.tensor.tobytes())
        alone = ran(in_cpp, model, tmp_path / "square.rgb", *golden.tensor.shape[:2])
        assert float(alone.stdout.split()[1]) == pytest.approx(golden.score, abs=1e-6), golden.name


def test_cpp_says_what_is_wrong(in_cpp: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    model = tiny_bundle / "model.onnx"
    write_tiny_onnx(tmp_path / "bare.onnx", TINY_SIZE)
    (tmp_path / "image.rgb").write_bytes(bytes(30))
    for arguments, code, words in (
        ([], 2, "expected MODEL.onnx"),
        ([model, tmp_path / "image.rgb", 4, 4], 2, "30 bytes"),
        ([tmp_path / "image.rgb", tmp_path / "image.rgb", 5, 2], 1, "Protobuf"),
        ([tmp_path / "bare.onnx", tmp_path / "image.rgb", 5, 2], 1, "holds no threshold"),
    ):
        done = ran(in_cpp, *arguments)
        assert done.returncode == code
        assert words in done.stderr
        assert not done.stdout


def test_swift_compiles_where_there_is_core_ml(tmp_path: Path) -> None:
    (program,) = snippets("docs/embed.md", "swift")
    if sys.platform != "darwin" or not shutil.which("swiftc"):
        pytest.skip("needs Xcode")
    (tmp_path / "verdict.swift").write_text(program)
    done = subprocess.run(
        ["swiftc", "-typecheck", tmp_path / "verdict.swift"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
