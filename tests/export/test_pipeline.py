"""The export pipeline and its gate, by the bundles for cpu."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from damage import (
    ConvertBy,
    Damage,
    infinite_map,
    missing_normalisation,
    rewrite,
    swapped_channels,
    transposed_map,
)
from small_network import SMALL
from tiny import tiny_image

import stlm_edge
from stlm_edge.bundle.reader import CANDIDATES
from stlm_edge.converters import onnx_int8
from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.export.pipeline import Exported, export, flops, over_budget
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.threshold import DecisionThreshold


def test_result_as_json_and_text(exported: dict[str, Exported]) -> None:
    done = exported["int8"]
    values = json.loads(json.dumps(done.as_json(), allow_nan=False))
    assert values["parity"]["images"] == 24
    assert values["golden_parity"]["images"] == 8
    assert values["losses"] == values["flips"] == []
    assert f"{done.folder}: cpu int8, " in done.describe()
    assert "24 images: map difference" in done.describe()


def test_flops_count_multiply_add_as_two() -> None:
    assert flops(STLM(ModelConfig(224)).eval()) / 1e9 == pytest.approx(8.087, abs=0.001)


@pytest.mark.parametrize(
    ("damage", "precision", "reason"),
    [
        (swapped_channels, "fp32", "of 24 verdicts fail"),
        (missing_normalisation, "fp32", "of 24 verdicts fail"),
        (transposed_map, "fp32", "nothing was written: fp32 map differs by .*, at most 0.0001 is allowed"),
        (transposed_map, "int8", "before int8, fp32 map differs by .*, at most 0.0001 is allowed"),
        (infinite_map, "fp32", "the fp32 model fails on normal-00: .* not finite"),
    ],
)
def test_gate_refuses_wrong_conversion_in_one_line(
    damage: Damage,
    precision: str,
    reason: str,
    convert_by: ConvertBy,
    small_checkpoint: Path,
    scratch: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    convert_by(damage)
    with pytest.raises(SystemExit) as end, exit_with_one_line():
        export("cpu", checkpoint=small_checkpoint, precision=precision, out=tmp_path / "bundle")
    output = capfd.readouterr()
    assert end.value.code == 1
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert re.search(reason, output.err), output.err
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert list(scratch.iterdir()) == []


def test_failed_gate_keeps_most_sensitive_layers_in_float(
    convert_by: ConvertBy, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_by(None)
    attempts = []

    def to_int8(source: Path, path: Path, threshold: DecisionThreshold, in_float: tuple[str, ...]) -> None:
        attempts.append(in_float)
        convert(source, path, threshold, in_float)
        if len(attempts) == 1:
            rewrite(path, swapped_channels)

    convert = onnx_int8.to_int8
    monkeypatch.setattr(onnx_int8, "to_int8", to_int8)
    done = export("cpu", checkpoint=small_checkpoint, precision="int8", out=tmp_path / "bundle")
    assert attempts[0] == ()
    (kept,) = attempts[1]
    assert len(attempts) == 2
    assert done.losses == []
    proto = onnx.load(tmp_path / "bundle" / "model.onnx")
    quantized = [node.input[1] for node in proto.graph.node if node.op_type == "MatMulInteger"]
    assert len(quantized) > 20
    assert not [name for name in quantized if name.startswith(kept)]
    first, second = done.candidates
    assert first.losses
    assert (second.kept_in_float, second.losses, second.verdict_failures) == ((kept,), [], 0)
    assert first.scope == second.scope == "linear layers"
    assert second.cosine > first.cosine
    assert second.bytes > first.bytes
    assert second.latency_ms is not None
    assert second.latency_ms > 0
    assert re.search(r"kept in float .*\n +0 .* fail.*\n +1 .* passes", done.describe())
    assert json.loads(json.dumps(done.as_json()))["candidates"][1]["kept_in_float"] == [kept]
    timed = json.loads((done.folder / CANDIDATES).read_text())
    assert [candidate.pop("latency_ms") for candidate in timed] == [first.latency_ms, second.latency_ms]
    assert timed == json.loads(json.dumps(done.manifest.provenance["candidates"])), (
        "all but the times, which would differ between two exports"
    )


def test_candidate_that_does_not_run_is_recorded(
    convert_by: ConvertBy, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_by(None)
    attempts = []

    def to_int8(source: Path, path: Path, threshold: DecisionThreshold, in_float: tuple[str, ...]) -> None:
        attempts.append(in_float)
        shutil.copyfile(source, path)
        if len(attempts) == 1:
            rewrite(path, infinite_map)

    monkeypatch.setattr(onnx_int8, "to_int8", to_int8)
    done = export("cpu", checkpoint=small_checkpoint, precision="int8", out=tmp_path / "bundle")
    first, second = done.candidates
    assert (first.latency_ms, first.cosine, first.verdict_failures) == (None, 0, 24)
    assert re.search("the int8 model fails on normal-00: .* not finite", first.losses[0])
    assert second.losses == []
    assert re.search(r"\n +0 .* nan .* 24 .*not finite.*\n +1 .* passes", done.describe())


def test_refusal_shows_metrics(convert_by: ConvertBy, small_checkpoint: Path, tmp_path: Path) -> None:
    convert_by(missing_normalisation)
    with pytest.raises(JobError, match=r"of 24 images: map difference [\d.]+ at most, .* cosine [\d.]+") as failure:
        export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle")
    assert "--allow-parity-loss" in str(failure.value)


def test_allowed_loss_is_recorded_in_manifest(convert_by: ConvertBy, small_checkpoint: Path, tmp_path: Path) -> None:
    convert_by(missing_normalisation)
    done = export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle", allow_parity_loss=True)
    manifest = stlm_edge.open(tmp_path / "bundle").manifest
    assert manifest.parity_loss_allowed
    assert manifest.parity.max_abs_diff > 1e-4
    assert manifest.parity.verdict_failures > 0
    assert len(done.losses) == 2
    assert "PARITY LOSS, allowed: fp32 map differs" in done.describe()
    assert "verdict of normal-" in done.describe()


def test_loss_of_finiteness_can_not_be_allowed(convert_by: ConvertBy, small_checkpoint: Path, tmp_path: Path) -> None:
    convert_by(infinite_map)
    with pytest.raises(JobError, match="not finite"):
        export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle", allow_parity_loss=True)


def test_accuracy_on_labelled_images_is_compared(
    convert_by: ConvertBy,
    tiny_images: Path,
    small_checkpoint: Path,
    tmp_path: Path,
) -> None:
    convert_by(None)
    done = export("cpu", checkpoint=small_checkpoint, precision="fp32", data=tiny_images, out=tmp_path / "bundle")
    assert done.accuracy is not None
    assert done.accuracy["trained"]["image_auroc"] == pytest.approx(done.accuracy["packed"]["image_auroc"], abs=1e-3)
    assert done.accuracy["trained"]["pixel_auroc"] is None
    assert "image_auroc" in done.describe()
    assert "pixel_auroc n/a → n/a" in done.describe()


def test_defaults_are_newest_run_and_first_precision(
    convert_by: ConvertBy,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert_by(None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no finished run in runs/.*stlm-train"):
        export("cpu")
    (tmp_path / "runs" / "older").mkdir(parents=True)
    (tmp_path / "runs" / "older" / "checkpoint.safetensors").write_bytes(b"not this one")
    shutil.copytree(small_checkpoint.parent, tmp_path / "runs" / "newer")
    (tmp_path / "runs" / "newer" / "checkpoint.safetensors").touch()
    assert export("cpu").folder == Path("bundles/cpu-int8")
    assert stlm_edge.open("bundles/cpu-int8").manifest.precision == "int8"


def test_quantization_folder_replaces_images_of_run(
    convert_by: ConvertBy,
    tiny_images: Path,
    small_checkpoint: Path,
    scratch: Path,
    tmp_path: Path,
) -> None:
    convert_by(None)
    lone = tmp_path / "checkpoint.safetensors"
    shutil.copyfile(small_checkpoint, lone)
    with pytest.raises(UsageError, match=r"golden: no such folder.*--quantization-set"):
        export("cpu", checkpoint=lone, precision="fp32", out=tmp_path / "bundle")
    done = export(
        "cpu", checkpoint=lone, precision="fp32", quantization_folder=tiny_images / "good", out=tmp_path / "bundle"
    )
    assert done.parity.images == 24 + 32
    assert {golden.anomalous for golden in done.manifest.golden} == {False, True}
    assert list(scratch.iterdir()) == []
    with pytest.raises(UsageError, match="no such folder"):
        export("cpu", checkpoint=lone, quantization_folder=tmp_path / "nowhere", out=tmp_path / "other")


def test_existing_bundle_is_refused_before_conversion_and_replaced_by_force(
    convert_by: ConvertBy,
    exported: dict[str, Exported],
    small_checkpoint: Path,
    tmp_path: Path,
) -> None:
    convert_by(lambda proto: pytest.fail("the conversion began"))
    shutil.copytree(exported["int8"].folder, tmp_path / "bundle")
    with pytest.raises(UsageError, match=r"bundle: exists.*--force"):
        export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle")
    convert_by(None)
    export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle", force=True)
    assert stlm_edge.open(tmp_path / "bundle").manifest.precision == "fp32"


@pytest.mark.parametrize("around", ["file", "/proc"])
def test_unwritable_folder_is_refused_before_conversion(
    around: str, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stlm_edge.export.pipeline.Torch", lambda path: pytest.fail("the work began"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"bundle: cannot be written \(.*\); choose another folder"):
        export("cpu", checkpoint=small_checkpoint, out=tmp_path / around / "new" / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_size_of_full_network_is_compared_with_budget() -> None:
    full = STLM(ModelConfig(224))
    assert over_budget(23_000_000, "int8", full) == ["23.0 MB: more than the 22 MB that int8 should take at S=224"]
    assert over_budget(23_000_000, "fp16", full) == []
    assert over_budget(23_000_000, "int8", STLM(replace(SMALL, size=224))) == []


def test_too_few_images_are_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for kind in ("normal", "anomalous"):
        (run / "golden" / kind).mkdir(parents=True)
        tiny_image(1).save(run / "golden" / kind / "0.png")
    shutil.copyfile(small_checkpoint, run / "checkpoint.safetensors")
    with pytest.raises(JobError, match="1 normal and 1 anomalous candidates, expected 8"):
        export("cpu", checkpoint=run / "checkpoint.safetensors", out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_missing_export_packages_are_reported() -> None:
    program = """
import sys
sys.modules["onnxsim"] = None
from stlm_edge.errors import exit_with_one_line
with exit_with_one_line():
    import stlm_edge.converters.onnx
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == 'error: onnxsim is not installed; pip install "stlm-edge[export]"\n'
