"""stlm-export's work: bundles that say what the trained model says, and a gate that stops those that don't."""

import json
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from damage import (
    ConvertBy,
    Damage,
    infinite_map,
    missing_normalisation,
    rewrite,
    swapped_channels,
    threshold_off_by_five_percent,
    transposed_map,
)
from small_network import SMALL
from tiny import tiny_image

import stlm_edge
from stlm_edge.bundle.reader import CANDIDATES
from stlm_edge.converters import quantization
from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.export.pipeline import Exported, export, flops, over_budget
from stlm_edge.model import STLM, ModelConfig, checkpoint
from stlm_edge.runtimes.torch import Torch
from stlm_edge.threshold import DecisionThreshold


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_says_what_the_trained_model_says(
    exported: dict[str, Exported], small_checkpoint: Path, precision: str
) -> None:
    bundle = stlm_edge.open(exported[precision].folder)
    trained = Torch(small_checkpoint)
    golden = list(bundle.golden())
    assert len(golden) == 8
    assert {image.anomalous for image in golden} == {False, True}
    assert {image.score > bundle.manifest.decision_threshold.value for image in golden} == {False, True}
    for image in golden:
        anomaly_map, score = trained.run(image.tensor.copy())
        assert np.array_equal(anomaly_map, image.map)
        verdict = bundle.predict(image.image_path)
        assert verdict.anomalous == (score > bundle.manifest.decision_threshold.value)
        assert np.abs(verdict.map - anomaly_map).max() < (1e-4 if precision == "fp32" else 0.1)
        assert abs(verdict.score - score) < (1e-4 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_manifest_says_where_the_model_comes_from_and_how_near_it_is(
    exported: dict[str, Exported], small_checkpoint: Path, precision: str
) -> None:
    done = exported[precision]
    manifest = stlm_edge.open(done.folder).manifest
    trained = checkpoint.load(small_checkpoint)
    assert (manifest.target, manifest.runtime, manifest.precision) == ("cpu", "onnxruntime", precision)
    assert manifest.decision_threshold == manifest.exported_threshold == trained.decision_threshold
    assert manifest.provenance.items() >= trained.provenance.items()
    assert len(manifest.provenance["checkpoint_sha256"]) == 64
    assert manifest.parameters == sum(parameter.numel() for parameter in trained.model.parameters())
    assert manifest.flops == flops(trained.model)
    assert set(manifest.tool_versions) == {"stlm-edge", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime"}
    assert manifest.parity == done.parity
    assert (done.parity.images, done.golden_parity.images) == (24, 8)
    assert done.parity.max_abs_diff >= done.golden_parity.max_abs_diff
    assert not manifest.parity_loss_allowed


def test_what_was_done_can_be_told_and_kept(exported: dict[str, Exported]) -> None:
    done = exported["int8"]
    figures = json.loads(json.dumps(done.as_json(), allow_nan=False))
    assert figures["parity"]["images"] == 24
    assert figures["golden_parity"]["images"] == 8
    assert figures["losses"] == figures["flips"] == []
    assert f"{done.folder}: cpu int8, " in done.describe()
    assert "24 images: map difference" in done.describe()


def test_flops_count_a_multiply_add_as_two() -> None:
    assert flops(STLM(ModelConfig(224)).eval()) / 1e9 == pytest.approx(8.087, abs=0.001)


# The gate


@pytest.mark.parametrize(
    ("damage", "precision", "reason"),
    [
        (swapped_channels, "fp32", "of 24 verdicts fail"),
        (missing_normalisation, "fp32", "of 24 verdicts fail"),
        (transposed_map, "fp32", "nothing was written: fp32 map differs by .*, at most 0.0001 is allowed"),
        (transposed_map, "int8", "before int8, fp32 map differs by .*, at most 0.0001 is allowed"),
        (infinite_map, "fp32", "the fp32 model fails on normal-00: .* not finite"),
        (threshold_off_by_five_percent, "fp32", "wrote .* for stlm_edge.threshold .* checkpoint"),
    ],
)
def test_a_damaged_converter_does_not_pass(
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
    said = capfd.readouterr()
    assert end.value.code == 1
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert re.search(reason, said.err), said.err
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert list(scratch.iterdir()) == []


def test_where_int8_fails_the_gate_the_layers_it_hurts_most_stay_in_float(
    convert_by: ConvertBy, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_by(None)
    tried = []

    def to_int8(
        model: STLM, source: Path, path: Path, decision_threshold: DecisionThreshold, in_float: tuple[str, ...]
    ) -> None:
        tried.append(in_float)
        quantization_to_int8(model, source, path, decision_threshold, in_float)
        if len(tried) == 1:
            rewrite(path, swapped_channels)

    quantization_to_int8 = quantization.to_int8
    monkeypatch.setattr(quantization, "to_int8", to_int8)
    done = export("cpu", checkpoint=small_checkpoint, precision="int8", out=tmp_path / "bundle")
    assert tried[0] == ()
    (kept,) = tried[1]
    assert len(tried) == 2
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
    assert re.search(r"kept in float .*\n +0 .* fail.*\n +1 .* holds", done.describe())
    assert json.loads(json.dumps(done.as_json()))["candidates"][1]["kept_in_float"] == [kept]
    timed = json.loads((done.folder / CANDIDATES).read_text())
    assert [tried.pop("latency_ms") for tried in timed] == [first.latency_ms, second.latency_ms]
    assert timed == json.loads(json.dumps(done.manifest.provenance["candidates"])), (
        "the manifest, which must not vary, has all but times"
    )


def test_a_try_that_does_not_run_is_told_among_the_others(
    convert_by: ConvertBy, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_by(None)
    tried = []

    def to_int8(
        model: STLM, source: Path, path: Path, decision_threshold: DecisionThreshold, in_float: tuple[str, ...]
    ) -> None:
        tried.append(in_float)
        shutil.copyfile(source, path)
        if len(tried) == 1:
            rewrite(path, infinite_map)

    monkeypatch.setattr(quantization, "to_int8", to_int8)
    done = export("cpu", checkpoint=small_checkpoint, precision="int8", out=tmp_path / "bundle")
    first, second = done.candidates
    assert (first.latency_ms, first.cosine, first.verdict_failures) == (None, 0, 24)
    assert re.search("the int8 model fails on normal-00: .* not finite", first.losses[0])
    assert second.losses == []
    assert re.search(r"\n +0 .* nan .* 24 .*not finite.*\n +1 .* holds", done.describe())


def test_the_gate_shows_the_figures(convert_by: ConvertBy, small_checkpoint: Path, tmp_path: Path) -> None:
    convert_by(missing_normalisation)
    with pytest.raises(JobError, match=r"of 24 images: map difference [\d.]+ at most, .* cosine [\d.]+") as failure:
        export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle")
    assert "--allow-parity-loss" in str(failure.value)


def test_an_allowed_loss_marks_the_manifest(convert_by: ConvertBy, small_checkpoint: Path, tmp_path: Path) -> None:
    convert_by(missing_normalisation)
    done = export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle", allow_parity_loss=True)
    manifest = stlm_edge.open(tmp_path / "bundle").manifest
    assert manifest.parity_loss_allowed
    assert manifest.parity.max_abs_diff > 1e-4
    assert manifest.parity.verdict_failures > 0
    assert len(done.losses) == 2
    assert "PARITY LOSS, allowed: fp32 map differs" in done.describe()
    assert "verdict of normal-" in done.describe()


def test_what_is_not_finite_cannot_be_allowed(convert_by: ConvertBy, small_checkpoint: Path, tmp_path: Path) -> None:
    convert_by(infinite_map)
    with pytest.raises(JobError, match="not finite"):
        export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle", allow_parity_loss=True)


def test_accuracy_on_labelled_images_joins_the_gate(
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


# What the user gives


def test_defaults_are_the_newest_run_and_the_target_s_own_precision_and_folder(
    convert_by: ConvertBy,
    small_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert_by(None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no finished run in runs/; make one with stlm-train"):
        export("cpu")
    (tmp_path / "runs" / "older").mkdir(parents=True)
    (tmp_path / "runs" / "older" / "checkpoint.safetensors").write_bytes(b"not this one")
    shutil.copytree(small_checkpoint.parent, tmp_path / "runs" / "newer")
    (tmp_path / "runs" / "newer" / "checkpoint.safetensors").touch()
    assert export("cpu").folder == Path("bundles/cpu-int8")
    assert stlm_edge.open("bundles/cpu-int8").manifest.precision == "int8"


def test_a_folder_of_normal_images_stands_in_for_the_run_s(
    convert_by: ConvertBy,
    tiny_images: Path,
    small_checkpoint: Path,
    scratch: Path,
    tmp_path: Path,
) -> None:
    convert_by(None)
    lone = tmp_path / "checkpoint.safetensors"
    shutil.copyfile(small_checkpoint, lone)
    with pytest.raises(
        UsageError, match="golden: no such folder; name a folder of normal images by --quantization-set"
    ):
        export("cpu", checkpoint=lone, precision="fp32", out=tmp_path / "bundle")
    done = export(
        "cpu", checkpoint=lone, precision="fp32", quantization_folder=tiny_images / "good", out=tmp_path / "bundle"
    )
    assert done.parity.images == 24 + 32
    assert {golden.anomalous for golden in done.manifest.golden} == {False, True}
    assert list(scratch.iterdir()) == []
    with pytest.raises(UsageError, match="no such folder"):
        export("cpu", checkpoint=lone, quantization_folder=tmp_path / "nowhere", out=tmp_path / "other")


def test_an_existing_bundle_is_refused_before_the_work_and_replaced_by_force(
    convert_by: ConvertBy,
    exported: dict[str, Exported],
    small_checkpoint: Path,
    tmp_path: Path,
) -> None:
    convert_by(lambda proto: pytest.fail("the conversion began"))
    shutil.copytree(exported["int8"].folder, tmp_path / "bundle")
    with pytest.raises(UsageError, match="bundle: exists; choose another folder or give --force to replace it"):
        export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle")
    convert_by(None)
    export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle", force=True)
    assert stlm_edge.open(tmp_path / "bundle").manifest.precision == "fp32"


@pytest.mark.parametrize("around", ["file", "/proc"])
def test_a_folder_that_cannot_be_written_is_seen_before_the_work(
    around: str, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stlm_edge.export.pipeline.Torch", lambda path: pytest.fail("the work began"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"bundle: cannot be written \(.*\); choose another folder"):
        export("cpu", checkpoint=small_checkpoint, out=tmp_path / around / "new" / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_full_network_s_size_is_held_against_its_budget(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(bytes(23_000_000))
    full = STLM(ModelConfig(224))
    assert over_budget(tmp_path / "model.onnx", "int8", full) == [
        "23.0 MB: more than the 22 MB that int8 should take at S=224"
    ]
    assert over_budget(tmp_path / "model.onnx", "fp16", full) == []
    assert over_budget(tmp_path / "model.onnx", "int8", STLM(replace(SMALL, size=224))) == []


def test_a_checkpoint_without_a_threshold_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    opened = checkpoint.load(small_checkpoint)
    checkpoint.save(tmp_path / "checkpoint.safetensors", opened.model, {})
    with pytest.raises(UsageError, match=r"holds no threshold.*train anew"):
        export("cpu", checkpoint=tmp_path / "checkpoint.safetensors", out=tmp_path / "bundle")


def test_too_few_images_are_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for kind in ("normal", "anomalous"):
        (run / "golden" / kind).mkdir(parents=True)
        tiny_image(1).save(run / "golden" / kind / "0.png")
    shutil.copyfile(small_checkpoint, run / "checkpoint.safetensors")
    with pytest.raises(JobError, match="1 normal and 1 anomalous candidates, expected 8"):
        export("cpu", checkpoint=run / "checkpoint.safetensors", out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


# What goes wrong on the way


def test_a_full_disk_leaves_nothing(
    small_checkpoint: Path,
    scratch: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    convert_by: ConvertBy,
) -> None:
    convert_by(None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, before[1]))
    try:
        with pytest.raises(SystemExit) as end, exit_with_one_line():
            export("cpu", checkpoint=small_checkpoint, precision="fp32", out=tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert end.value.code == 1
    assert "File too large" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert list(scratch.iterdir()) == []


def test_without_the_export_packages_one_line_names_them() -> None:
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
