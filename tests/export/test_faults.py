"""Faults during an export, for each converter: a message of one line, and nothing left behind."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from disk_full import largest_file, leaving_nothing, no_free_space

from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.export.ladder import CONVERSIONS
from stlm_edge.export.pipeline import Exported, export
from stlm_edge.export.targets import TARGETS, Target

Links = Callable[[str, Path], None]
CONVERTERS = [
    pytest.param("cpu", None, "fp32", "onnx.to_onnx", id="cpu"),
    pytest.param("cpu", None, "int8", "onnx_int8.to_int8", id="cpu-int8"),
    pytest.param("cpu", "openvino", "fp32", "openvino.to_openvino", id="cpu-openvino"),
    pytest.param("jetson", None, "fp32", "tensorrt.to_fp32", id="jetson"),
    pytest.param("android", None, "fp16", "tflite.to_tflite", id="android"),
    pytest.param("ios", None, "fp16", "coreml.to_coreml", id="ios"),
    pytest.param("web", None, "fp16", "web.to_fp32", id="web"),
]


@pytest.fixture
def link_instead(monkeypatch: pytest.MonkeyPatch) -> Links:
    """Return a function that makes a converter link to an existing file instead of writing one."""
    return lambda name, file: monkeypatch.setattr(name, lambda model, path, *_: os.link(file, path))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.name}-{target.via}")
def test_missing_package_is_reported_before_conversion(
    target: Target, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = CONVERSIONS[target.via or target.runtime].packages
    monkeypatch.setattr("stlm_edge.export.pipeline.Torch", lambda path: pytest.fail("the checkpoint was opened"))
    for missing in packages:
        versions = {package: "1.0" for package in packages if package != missing}
        monkeypatch.setattr("stlm_edge.export.pipeline.installed_versions", lambda _, found=versions: found)
        with pytest.raises(UsageError) as refusal:
            export(target.name, via=target.via, checkpoint=small_checkpoint, out=tmp_path / "bundle")
        extra = "pip install torch-tensorrt" if target.via == "torch-tensorrt" else 'pip install "stlm-edge[export]"'
        assert str(refusal.value).startswith(f"{missing} is not installed; ")
        assert str(refusal.value).endswith(extra)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("target", "via", "precision", "converter"), CONVERTERS)
def test_ctrl_c_leaves_nothing(
    target: str,
    via: str | None,
    precision: str,
    converter: str,
    even_checkpoint: Path,
    even_onnx: Path,
    link_instead: Links,
    scratch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        (path,) = (path for path in arguments if isinstance(path, Path) and not path.exists())
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    module, function = converter.split(".")
    importlib.import_module(f"stlm_edge.converters.{module}")
    if module != "onnx":
        link_instead("stlm_edge.converters.onnx.to_onnx", even_onnx)
    monkeypatch.setattr(f"stlm_edge.converters.{module}.{function}", interrupted)
    with leaving_nothing(tmp_path), pytest.raises(SystemExit) as end, exit_with_one_line("interrupted"):
        export(
            target,
            via=via,
            precision=precision,
            checkpoint=even_checkpoint,
            out=tmp_path / "bundle",
            allow_parity_loss=True,
        )
    assert end.value.code == 130
    assert capfd.readouterr().err.splitlines()[-1] == "error: interrupted"


@pytest.mark.parametrize(
    ("target", "via", "precision", "converter"),
    [
        pytest.param(*row.values, id=row.id, marks=pytest.mark.slow if row.id == "ios" else ())
        for row in CONVERTERS
        if row.id not in ("cpu", "android")  # writes no second file; has its own test
    ],
)
def test_full_disk_is_reported_in_one_line(
    target: str,
    via: str | None,
    precision: str,
    converter: str,
    even_checkpoint: Path,
    even_onnx: Path,
    link_instead: Links,
    scratch: Path,
    tmp_path: Path,
) -> None:
    """Converters report it in many ways: OSError, RuntimeError, a file that can't be parsed."""
    link_instead("stlm_edge.converters.onnx.to_onnx", even_onnx)
    with leaving_nothing(tmp_path), pytest.raises(JobError) as failure, no_free_space(1 << 18):
        export(
            target,
            via=via,
            precision=precision,
            checkpoint=even_checkpoint,
            out=tmp_path / "bundle",
            allow_parity_loss=True,
        )
    assert "disk full" in str(failure.value)
    assert "TMPDIR" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_full_disk_at_the_bundle_leaves_nothing(
    exported: dict[str, Exported], small_checkpoint: Path, scratch: Path, tmp_path: Path, link_instead: Links
) -> None:
    """The temporary folder has space, the place of the bundle has none."""
    link_instead("stlm_edge.converters.onnx.to_onnx", exported["fp32"].folder / "model.onnx")
    with leaving_nothing(tmp_path), pytest.raises(JobError, match="File too large"), largest_file(1 << 18):
        export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle")
