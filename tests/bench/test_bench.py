"""stlm-bench on real bundles, real processes and a real onnxruntime."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image
from tiny import TINY_SIZE, set_metadata, tiny_image, write_tiny_bundle, write_tiny_onnx

from stlm_edge.bench import latency
from stlm_edge.bench.measure import Plan, Subject, images_per_second, measure, unmeasured
from stlm_edge.bundle import open_bundle
from stlm_edge.bundle.manifest import read_manifest
from stlm_edge.bundle.writer import list_file
from stlm_edge.commands.bench import main
from stlm_edge.errors import JobError
from stlm_edge.formats import metadata_entries
from stlm_edge.strict_json import dump

QUICK = ["--queries", "30", "--seconds", "0"]


@pytest.fixture(scope="module")
def schema() -> dict:
    return json.loads(resources.files("stlm_edge").joinpath("schemas/bench-1.schema.json").read_text("utf-8"))


def bench(out: Path, *bundles: Path, exit_code: int = 0, more: tuple[str, ...] = ()) -> dict:
    """Run stlm-bench in this process; return bench.json."""
    given = [argument for bundle in bundles for argument in ("--bundle", str(bundle))]
    arguments = [*given, *QUICK, *more, "--out", str(out)]
    if exit_code:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == exit_code
    else:
        main(arguments)
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "report.html"]
    return json.loads((out / "bench.json").read_text("utf-8"))


def seal(bundle: Path) -> Path:
    """Update the manifest for the changed files of a bundle, as if they had been exported like that."""
    manifest = read_manifest(bundle / "manifest.json")
    files = tuple(list_file(bundle, file.path) for file in manifest.files)
    (bundle / "manifest.json").write_text(dump(dataclasses.replace(manifest, files=files)), encoding="utf-8")
    return bundle


def with_another_model(bundle: Path, folder: Path, **model: object) -> Path:
    """Copy a bundle, with another model than the one that its golden outputs are from."""
    shutil.copytree(bundle, folder)
    write_tiny_onnx(folder / "model.onnx", TINY_SIZE, **model)  # type: ignore[arg-type]
    decision_threshold = read_manifest(folder / "manifest.json").decision_threshold
    set_metadata(folder / "model.onnx", metadata_entries(decision_threshold, TINY_SIZE))
    return seal(folder)


def test_a_sound_bundle_has_a_complete_row(
    tiny_bundle: Path, tmp_path: Path, schema: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bench(tmp_path / "out", tiny_bundle)
    jsonschema.validate(found, schema)
    (row,) = found["rows"]
    assert row["bundle"] == str(tiny_bundle)
    assert (row["runtime"], row["precision"], row["passed"], row["failure"]) == ("onnxruntime", "fp32", True, None)
    assert row["parity"]["max_abs_diff"] <= 1e-6
    assert (row["parity"]["verdict_flips"], row["parity"]["images"], row["parity"]["resize_max_diff"]) == (0, 8, 0)
    assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p90"] <= row["latency_ms"]["p99"]
    assert (row["queries"], row["threads"], len(row["round_p50_ms"])) == (30, 1, 10)
    assert row["size_mb"] == round((tiny_bundle / "model.onnx").stat().st_size / 1e6, 3)
    assert 20 < row["peak_memory_mb"] < 400
    assert row["accuracy"] is None
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == found["headline"]
    assert printed[-1].startswith("tiny: same verdicts as the trained model on 8 of 8 images; p50 ")
    assert printed[-2] == f"report: {tmp_path / 'out' / 'report.html'}"


@pytest.mark.usefixtures("without_report")
def test_bundles_are_measured_side_by_side(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_bundle(tmp_path / "other" / "tiny", precision="int8")
    found = bench(tmp_path / "out", tiny_bundle, other, more=("--json",))
    assert json.loads(capsys.readouterr().out) == found
    assert [row["name"] for row in found["rows"]] == [str(tiny_bundle), str(other)]
    assert [len(row["round_p50_ms"]) for row in found["rows"]] == [10, 10]
    assert "the speed of" in found["headline"]


def test_another_model_fails_and_the_others_are_measured(
    tiny_bundle: Path, tmp_path: Path, schema: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = with_another_model(tiny_bundle, tmp_path / "wrong", gain=3.0)
    found = bench(tmp_path / "out", tiny_bundle, wrong, exit_code=1)
    jsonschema.validate(found, schema)
    sound, failed = found["rows"]
    assert sound["passed"]
    assert sound["latency_ms"]
    assert not failed["passed"]
    assert "fp32 map differs by" in failed["failure"]
    assert failed["latency_ms"] is None
    assert failed["parity"]["verdict_failures"] > 0
    assert {answer["verdict"] for answer in failed["golden"]} >= {"failure"}
    printed = capsys.readouterr().out
    assert "not measured" in printed
    assert printed.splitlines()[-1].startswith("wrong FAILED: fp32 map differs by")
    assert "✗ failed" in (tmp_path / "out" / "report.html").read_text("utf-8")


@pytest.mark.usefixtures("without_report")
def test_even_if_wrong_times_and_marks_failed_rows(tiny_bundle: Path, tmp_path: Path) -> None:
    wrong = with_another_model(tiny_bundle, tmp_path / "wrong", gain=3.0)
    sound, failed = bench(tmp_path / "out", tiny_bundle, wrong, exit_code=1, more=("--even-if-wrong",))["rows"]
    assert (sound["passed"], sound["timed_even_if_wrong"]) == (True, False)
    assert (failed["passed"], failed["timed_even_if_wrong"]) == (False, True)
    assert failed["latency_ms"]["p50"] > 0


@pytest.mark.usefixtures("without_report")
def test_a_row_has_placement_duration_and_throughput(tiny_bundle: Path, tmp_path: Path) -> None:
    more = ("--seconds", "1", "--streams", "1", "--streams", "2")
    (row,) = bench(tmp_path / "out", tiny_bundle, more=more)["rows"]
    (placement,) = row["placement"]
    assert (placement["by"], placement["fell_back"]) == ("CPUExecutionProvider", False)
    assert placement["nodes"] > 3
    assert row["seconds"] >= 1, "at least, not about"
    assert row["queries"] > 30
    assert row["warmup"] >= 24
    assert row["end_to_end_ms"]["p50"] > row["latency_ms"]["p50"], "decoding takes time too"
    assert [each["streams"] for each in row["throughput"]] == [1, 2]
    assert all(each["images_per_second"] > 0 for each in row["throughput"])


@pytest.mark.usefixtures("without_report")
def test_decoding_that_differs_from_the_stored_tensor_fails(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "darker"
    shutil.copytree(tiny_bundle, folder)
    image = folder / read_manifest(folder / "manifest.json").golden[3].image
    with Image.open(image) as opened:
        pixels = np.asarray(opened)
    Image.fromarray(pixels - np.uint8(7)).save(image)
    (row,) = bench(tmp_path / "out", seal(folder), exit_code=1)["rows"]
    assert row["failure"] == "decoding and resizing differ by 7 grey levels, at most 1 is allowed"
    assert [answer["resize_max_diff"] for answer in row["golden"]] == [0, 0, 0, 7, 0, 0, 0, 0]
    assert row["parity"]["max_abs_diff"] <= 1e-6


@pytest.mark.usefixtures("without_report")
def test_a_model_with_nan_outputs_is_a_failed_row(tiny_bundle: Path, tmp_path: Path, schema: dict) -> None:
    broken = with_another_model(tiny_bundle, tmp_path / "broken", extra="nan")
    found = bench(tmp_path / "out", broken, exit_code=1)
    jsonschema.validate(found, schema)
    assert "not finite" in found["rows"][0]["failure"]
    assert found["rows"][0]["parity"] is None


def test_a_killed_process_is_reported_with_its_signal(tiny_bundle: Path) -> None:
    process = latency.Process(["--bundle", str(tiny_bundle)])
    try:
        process.open()
        assert len(process.round(3)) == 3
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(JobError, match="killed by signal 9"):
            process.round(3)
    finally:
        process.stop()


def test_a_hanging_process_is_stopped(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "LOAD_LIMIT_S", 0.01)
    with pytest.raises(JobError, match=r"no output within 0\.01 s"):
        latency.Process(["--bundle", str(tiny_bundle)]).open()


def test_a_round_is_limited_by_the_slowest_query_so_far(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MIN_LIMIT_S", 0.5)
    process = latency.Process(["--bundle", str(tiny_bundle)])
    try:
        process.open()
        process._slowest_ms = 60_000.0  # a device that takes a minute for an image isn't hung
        assert process._limit_s(8) == 20 * 8 * 60
        process._slowest_ms = 1.0
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(JobError, match=r"no output within 0\.5 s"):
            process.round(3)
    finally:
        process.stop()


@pytest.mark.usefixtures("without_report")
def test_time_limit_ends_a_bench(tiny_bundle: Path, tmp_path: Path) -> None:
    more = ("--seconds", "600", "--time-limit", "4")
    began = time.monotonic()
    (row,) = bench(tmp_path / "out", tiny_bundle, exit_code=1, more=more)["rows"]
    assert time.monotonic() - began < 60
    assert row["failure"] == "while it was timed, not finished within the time limit"
    assert row["parity"]["verdict_flips"] == 0
    assert row["latency_ms"] is None


@pytest.mark.usefixtures("without_report")
def test_a_row_that_fell_back_entirely_fails(tiny_bundle: Path) -> None:
    """onnxruntime's Azure provider runs no node of any graph, so that all fall back."""
    pytest.importorskip("onnxruntime")
    bundle = open_bundle(tiny_bundle)
    row = dataclasses.replace(unmeasured(bundle, 1, 1), runtime="onnxruntime/azure")
    (found,) = measure([Subject(row, bundle)], Plan(20, 0), lambda _: None)
    assert not found.passed
    assert found.failure == ("fell back: all of its nodes ran on CPUExecutionProvider, none on AzureExecutionProvider")
    assert found.placement is not None
    assert [(part.by, part.fell_back) for part in found.placement] == [("CPUExecutionProvider", True)]


def test_litert_reports_the_nodes_of_xnnpack(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    from tiny_tflite import tiny_model, write_tflite

    from stlm_edge.runtimes.litert import LiteRT

    write_tflite(tmp_path / "model.tflite", tiny_model(TINY_SIZE))
    runtime = LiteRT(tmp_path / "model.tflite", 1)
    assert runtime.placement() == {"XNNPACK": 3}
    without = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runtime.interpreter = Interpreter(str(tmp_path / "model.tflite"), experimental_op_resolver_type=without)
    assert runtime.placement() == {"LiteRT's kernels": 3}


@pytest.mark.usefixtures("without_report")
def test_an_unavailable_provider_is_a_failed_row(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    row = dataclasses.replace(unmeasured(bundle, 1, 1), runtime="onnxruntime/nonsense")
    (found,) = measure([Subject(row, bundle)], Plan(20, 0), lambda _: None)
    assert "onnxruntime/nonsense: onnxruntime" in (found.failure or "")


@pytest.mark.usefixtures("without_report")
def test_an_emulated_row_has_no_latency(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stlm_edge.bench.measure.emulator", lambda: "qemu-aarch64-static")
    bundle = open_bundle(tiny_bundle)
    (row,) = measure([Subject(unmeasured(bundle, 1, 1), bundle)], Plan(20, 0, streams=(1,)), lambda _: None)
    assert row.passed
    assert row.parity is not None
    assert row.untimed == "qemu-aarch64-static emulates this processor: its time says nothing of the device"
    assert (row.latency_ms, row.end_to_end_ms, row.load_ms, row.first_inference_ms) == (None,) * 4
    assert (row.throughput, row.queries, row.peak_memory_mb) == ((), 0, None)


def test_throughput_counts_the_time_when_all_streams_are_busy() -> None:
    assert images_per_second([[10.0] * 8]) == pytest.approx(100)
    assert images_per_second([[10.0] * 8, [10.0] * 8]) == pytest.approx(200)
    assert images_per_second([[10.0] * 8, [20.0] * 8]) == pytest.approx(150)


def test_an_engine_is_built_before_its_row_is_timed(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime takes the place of TensorRT, with a first build that takes three seconds and leaves a file."""
    (tmp_path / "sitecustomize.py").write_text(f"""
import pathlib, time
import stlm_edge.bundle.engine as engine
import stlm_edge.runtimes.tensorrt as tensorrt
from stlm_edge.runtimes.onnxruntime import OnnxRuntime
def engine_for(artifact):
    built = pathlib.Path({str(tmp_path / "engine")!r})
    if not built.exists():
        time.sleep(3)
        built.write_text("built")
    return artifact
engine.engine_for, tensorrt.TensorRT = engine_for, OnnxRuntime
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bundle, said = open_bundle(tiny_bundle), list[str]()
    row = dataclasses.replace(unmeasured(bundle, 1, 1), runtime="tensorrt")
    (found,) = measure([Subject(row, bundle)], Plan(20, 0), said.append)
    assert found.passed, found.failure
    assert said.index("building the engine: tiny") < said.index("parity: tiny")
    assert found.load_ms is not None
    assert found.load_ms < 3000


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--queries", "0"], "--queries: found 0"),
        (["--threads", "-1"], "--threads: found -1"),
        (["--checkpoint", "none.safetensors"], "none.safetensors: no such checkpoint"),
        (["--category", "bottle"], "--category: given without --data"),
        (["--data", "nowhere"], "nowhere: "),
        (["--bundle", "nowhere"], "nowhere: no such bundle folder"),
        (["--runtime", "nonsense"], "--runtime nonsense: unknown; expected onnxruntime"),
        (["--runtime", "litert"], "--runtime litert: runs none of model.onnx here"),
        (["--runtime", "torch"], "--runtime torch: runs the trained model; expected --checkpoint"),
        (["--runtime", "all", "--device", "ssh:pi"], "--runtime: is for this machine; expected --device local"),
        (["--max-regression", "0.05"], "found '0.05', expected a percentage: 5% if you mean that share, else 0.05%"),
        (["--with", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_unusable_input_is_refused_before_measuring(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--bundle", str(tiny_bundle), "--out", str(tmp_path / "out"), *arguments])
    assert left.value.code == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_out_must_not_be_a_file(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("kept")
    with pytest.raises(SystemExit):
        main(["--bundle", str(tiny_bundle), "--out", str(tmp_path / "out")])
    assert "out: a file; --out expects a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "kept"


def test_a_device_needs_neither_torch_nor_the_report(tiny_bundle: Path, tmp_path: Path) -> None:
    program = f"""
import sys
missing = "torch typer rich pydantic scipy jinja2 matplotlib safetensors".split()
sys.modules.update(dict.fromkeys(missing))  # import of any of them fails
from stlm_edge.commands.bench import main
main(["--bundle", {str(tiny_bundle)!r}, "--queries", "10", "--seconds", "0", "--out", {str(tmp_path / "out")!r}])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert 'no report: it needs pip install "stlm-edge[train]"' in ran.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bench.json"]


def test_a_full_disk_leaves_no_partial_file(tiny_bundle: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "stlm_edge.bench",
            "--bundle",
            tiny_bundle,
            "--queries",
            "10",
            "--seconds",
            "0",
            "--out",
            tmp_path / "out",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].endswith("bench.json: cannot be written (File too large)")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("without_report")
def test_the_trained_model_is_a_row_of_its_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from small_network import SMALL

    from stlm_edge.bundle.golden import GoldenCandidate, select_golden
    from stlm_edge.bundle.writer import write_bundle
    from stlm_edge.images import load
    from stlm_edge.model import STLM, checkpoint
    from stlm_edge.runtimes.torch import Torch
    from stlm_edge.threshold import calibrate

    torch.manual_seed(0)
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.parent.mkdir()
    checkpoint.save(path, STLM(SMALL).eval(), {"teacher": "none"}, calibrate([0.5], [0.0]))
    model = Torch(path, threads=1)
    candidates = []
    for seed in range(8):
        tensor = load(tiny_image(seed, bool(seed % 2)), TINY_SIZE)
        image = tiny_image(seed, bool(seed % 2))
        candidates.append(GoldenCandidate(f"part-{seed}", image, bool(seed % 2), tensor, *model.run(tensor)))
    decision_threshold = calibrate([candidate.score for candidate in candidates], [0.0] * 8, 0.01)
    write_tiny_onnx(tmp_path / "model.onnx", TINY_SIZE)
    set_metadata(tmp_path / "model.onnx", metadata_entries(decision_threshold, TINY_SIZE))
    write_bundle(
        *(tmp_path / "bundle", tmp_path / "model.onnx", select_golden(candidates, decision_threshold.value)),
        target="cpu",
        runtime="onnxruntime",
        precision="fp32",
        decision_threshold=decision_threshold,
        parity=open_bundle(write_tiny_bundle(tmp_path / "tiny")).manifest.parity,
        provenance={"teacher": "EfficientNet-Lite0 (ImageNet)"},
        tool_versions={},
        parameters=0,
        flops=None,
        parity_loss_allowed=False,
    )
    found = bench(tmp_path / "out", tmp_path / "bundle", exit_code=1, more=("--checkpoint", str(path)))
    onnx, torch_row = found["rows"]
    assert not onnx["passed"], "its artifact is another model"
    assert (torch_row["name"], torch_row["target"], torch_row["passed"]) == ("torch", None, True)
    assert torch_row["parity"]["max_abs_diff"] <= 1e-5
    assert torch_row["latency_ms"]["p50"] > 0
    assert found["machine"]["packages"].keys() >= {"numpy", "Pillow", "onnxruntime", "torch"}


def test_peak_memory_excludes_the_parent_process() -> None:
    ballast = np.ones(40_000_000)  # 320 MB in this process
    program = "from stlm_edge.bench.machine.system import peak_memory_mb; print(peak_memory_mb())"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert 3 < float(ran.stdout) < 150
    assert ballast[0]


@pytest.mark.usefixtures("without_report")
def test_accuracy_is_measured_on_the_artifact_itself(tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    found = bench(tmp_path / "out", tiny_bundle, more=("--data", str(tiny_images)))
    assert found["data"] == str(tiny_images)
    assert found["rows"][0]["accuracy"]["image_auroc"] > 0.9
    assert found["rows"][0]["accuracy"]["pixel_auroc"] is None, "these images have no masks"


@pytest.mark.usefixtures("without_report")
def test_an_unreadable_test_image_fails_the_row_and_keeps_its_latency(
    tiny_bundle: Path, tiny_images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("scipy")
    images = tmp_path / "images"
    shutil.copytree(tiny_images, images)
    (images / "spot" / "301.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = bench(tmp_path / "out", tiny_bundle, exit_code=1, more=("--data", str(images)))
    row = found["rows"][0]
    assert row["failure"].startswith("accuracy: ")
    assert "301.png" in row["failure"]
    assert row["latency_ms"]
    assert row["accuracy"] is None
