"""What goes wrong on the way, for each converter: one line, and nothing left behind."""

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from disk_full import largest_file

from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.export.ladder import CONVERSIONS
from stlm_edge.export.pipeline import Exported, export
from stlm_edge.export.targets import TARGETS, Target

Links = Callable[[str, Path], None]


@pytest.fixture
def converted_already(monkeypatch: pytest.MonkeyPatch) -> Links:
    """Let a converter give this file, without writing anything."""
    return lambda name, file: monkeypatch.setattr(name, lambda model, path, *_: os.link(file, path))


@contextmanager
def leaving_nothing(tmp_path: Path) -> Iterator[None]:
    yield
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("row", TARGETS, ids=lambda row: f"{row.name}-{row.via}")
def test_a_missing_package_is_named_before_the_work(
    row: Target, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = CONVERSIONS[row.via or row.runtime]
    monkeypatch.setattr("stlm_edge.export.pipeline.Torch", lambda path: pytest.fail("the work began"))
    for missing in way.packages:

        def version(package: str, missing: str = missing) -> str:
            if package == missing:
                raise PackageNotFoundError
            return "1.0"

        monkeypatch.setattr("stlm_edge.export.pipeline.version", version)
        with pytest.raises(UsageError) as refusal:
            export(row.name, via=row.via, checkpoint=small_checkpoint, out=tmp_path / "bundle")
        extra = "pip install torch-tensorrt" if row.via == "torch-tensorrt" else 'pip install "stlm-edge[export]"'
        assert str(refusal.value).startswith(f"{missing} is not installed; ")
        assert str(refusal.value).endswith(extra)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "via", "converter"),
    [
        ("cpu", None, "onnx.to_onnx"),
        ("cpu", None, "quantization.to_int8"),
        ("cpu", "openvino", "openvino.to_openvino"),
        ("jetson", None, "tensorrt.to_fp32"),
        ("android", None, "litert.to_tflite"),
        ("ios", None, "coreml.to_coreml"),
        ("web", None, "webgpu.to_browser"),
    ],
)
def test_ctrl_c_leaves_nothing(
    target: str,
    via: str | None,
    converter: str,
    even_checkpoint: Path,
    even_onnx: Path,
    converted_already: Links,
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
        converted_already("stlm_edge.converters.onnx.to_onnx", even_onnx)
    monkeypatch.setattr(f"stlm_edge.converters.{module}.{function}", interrupted)
    with leaving_nothing(tmp_path), pytest.raises(SystemExit) as end, exit_with_one_line("interrupted"):
        export(target, via=via, checkpoint=even_checkpoint, out=tmp_path / "bundle", allow_parity_loss=True)
    assert end.value.code == 130
    assert capfd.readouterr().err.splitlines()[-1] == "error: interrupted"


@pytest.mark.parametrize(
    ("target", "via", "precision"),
    [
        ("cpu", None, "int8"),
        ("cpu", "openvino", "fp32"),
        ("jetson", None, "fp32"),
        ("android", None, "fp16"),
        ("ios", None, "fp16"),
        ("web", None, "fp16"),
    ],
)
def test_a_full_disk_is_one_line_whatever_the_converter_says_of_it(
    target: str,
    via: str | None,
    precision: str,
    small_checkpoint: Path,
    even_checkpoint: Path,
    even_onnx: Path,
    exported_for_android: dict[str, Exported],
    converted_already: Links,
    scratch: Path,
    tmp_path: Path,
) -> None:
    converted_already("stlm_edge.converters.onnx.to_onnx", even_onnx)
    if target == "android":
        whole = shutil.copyfile(exported_for_android["fp32"].folder / "model.tflite", tmp_path.parent / "whole.tflite")
        converted_already("stlm_edge.converters.litert.to_tflite", whole)
    with leaving_nothing(tmp_path), pytest.raises(JobError) as failure, largest_file(1 << 18):
        export(
            target,
            via=via,
            precision=precision,
            checkpoint=small_checkpoint if target == "android" else even_checkpoint,
            out=tmp_path / "bundle",
            allow_parity_loss=True,
        )
    assert "no room for the conversion (" in str(failure.value)
    assert str(failure.value).endswith("let TMPDIR name another folder; nothing was written")
