"""Device-side modules import only the standard library, numpy, Pillow and one runtime."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_image

HEAVY = ("torch", "torchvision", "pydantic", "typer", "rich", "scipy", "onnx", "safetensors", "matplotlib", "jinja2")


def imported(code: str, *arguments: object) -> set[str]:
    """Return the top-level modules that a fresh interpreter has imported after running the code."""
    ending = "\nimport sys\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", code + ending, *map(str, arguments)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split())


def test_package_imports_only_the_standard_library() -> None:
    assert not imported("import stlm_edge; stlm_edge.__version__") & {"numpy", "PIL", "onnxruntime", *HEAVY}


@pytest.mark.parametrize(
    "module", ["commands.predict", "commands.calibrate", "bundle", "bundle.writer", "heatmap", "commands.bench"]
)
def test_device_side_modules_import_no_runtime_or_training_packages(module: str) -> None:
    assert not imported(f"import stlm_edge.{module}") & {"onnxruntime", "ai_edge_litert", "flatbuffers", *HEAVY}


def test_prediction_imports_only_the_runtime_of_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    tiny_image(1).save(tmp_path / "part.png")
    code = "import sys, stlm_edge; print(stlm_edge.open(sys.argv[1]).predict(sys.argv[2]).score)"
    modules = imported(code, tiny_bundle, tmp_path / "part.png")
    assert modules >= {"numpy", "PIL", "onnxruntime"}
    assert not modules & set(HEAVY)


def test_android_bundle_predicts_and_calibrates_with_its_interpreter_only(
    exported_for_android: dict[str, Any], tiny_images: Path, site_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported_for_android["int8"].folder, tmp_path / "bundle")
    code = """
import sys
for name in ("flatbuffers", "onnxruntime", "torch"):
    sys.modules[name] = None
from stlm_edge.commands import calibrate, predict
predict.main(["--bundle", sys.argv[1], sys.argv[2]])
calibrate.main(["--bundle", sys.argv[1], "--data", sys.argv[3]])
sys.modules.pop("torch"), sys.modules.pop("onnxruntime")
"""
    modules = imported(code, tmp_path / "bundle", tiny_images / "spot" / "305.png", site_images)
    assert modules >= {"numpy", "PIL", "ai_edge_litert"}
    assert not modules & {"onnxruntime", *HEAVY}


def test_unknown_attribute_raises_attribute_error() -> None:
    import stlm_edge

    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = stlm_edge.nonsense
