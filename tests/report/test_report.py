"""The report needs no other file, shows what was measured, and marks what was not."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import write_tiny_bundle

from stlm_edge import strict_json
from stlm_edge.bench.latency import parity_of, worst_of
from stlm_edge.bench.result import Row
from stlm_edge.bench.summary import headline
from stlm_edge.bundle import open_bundle
from stlm_edge.errors import UsageError
from stlm_edge.export.targets import TARGETS
from stlm_edge.report.report import write_report

HOSTILE = '<script>alert("$x$")</script>&<b>\x07{{ 7 * 191 }}'


class Page(HTMLParser):
    """A parsed page: its elements, its attributes that may load something, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.fetched += [
            value or "" for name, value in attributes if name in ("src", "href", "srcset", "xlink:href", "data")
        ]

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] != ["style"]:
            self.words.append(data)


def row(name: str = "cpu-fp32", **changes: object) -> dict:
    """A row of bench.json."""
    golden = [
        {
            "name": f"part-{number:02}",
            "anomalous": number > 5,
            "max_abs_diff": 2e-6,
            "mean_abs_diff": 1e-7,
            "cosine": 1.0,
            "score": number / 12,
            "expected_score": number / 12,
            "verdict": "same",
            "resize_max_diff": 0,
        }
        for number in range(12)
    ]
    parity = {"max_abs_diff": 2e-6, "mean_abs_diff": 1e-7, "cosine": 1.0, "verdict_flips": 0, "verdict_failures": 0}
    return {
        "name": name,
        "bundle": f"bundles/{name}",
        "device": None,
        "target": "cpu",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "teacher": None,
        "input_size": 224,
        "size_mb": 66.9,
        "threads": 1,
        "passed": True,
        "failure": None,
        "parity": parity | {"score_max_diff": 0.0, "resize_max_diff": 0, "images": 12},
        "threshold": 0.48,
        "verdict_delta": 0.002,
        "golden": golden,
        "load_ms": 300.0,
        "first_inference_ms": 60.0,
        "peak_memory_mb": 301.0,
        "warmup": 10,
        "queries": 100,
        "timed_even_if_wrong": False,
        "placement": [{"by": "CPUExecutionProvider", "nodes": 940, "fell_back": False}],
        "steady": True,
        "seconds": 5.5,
        "latency_ms": {"p50": 54.4, "p90": 57.0, "p99": 71.0, "p90_early_stopping": 59.0},
        "end_to_end_ms": {"p50": 56.4, "p90": 59.0, "p99": 73.0, "p90_early_stopping": 61.0},
        "throughput": [{"streams": 2, "images_per_second": 33.0}],
        "energy_mj": 300.0,
        "round_p50_ms": [54.0, 54.4, 55.0],
        "accuracy": None,
    } | changes


def machine(processor: str, **reported: object) -> dict:
    return {"processor": processor, "architecture": "x86_64", "cores": 2, "packages": {"numpy": "2.0"}} | reported


def bench(*rows: dict, **more: object) -> dict:
    return {
        "headline": "cpu-fp32: same verdicts as the trained model on 12 of 12 images; p50 54 ms",
        "date": "2026-01-02T03:04:05Z",
        "command": "stlm-bench --bundle bundles/cpu-fp32 --out out",
        "machine": machine("Example CPU"),
        "devices": [],
        "rows": list(rows) or [row()],
    } | more


def host_and_board() -> dict:
    """The same bundles on this machine and, faster, on a board; a third device was lost."""
    quick = {"p50": 4.0, "p90": 5.25, "p99": 6.0, "p90_early_stopping": 5.5}
    there = [
        row(device="ssh:nano", latency_ms=quick, energy_mj=12.5),
        row("cpu-int8", device="ssh:nano", latency_ms=None, passed=False, failure="its process was ended by signal 11"),
    ]
    gone = [
        row(device="adb:77", passed=False, failure="lost: unplugged", parity=None, golden=[], latency_ms=None)
        for _ in range(2)
    ]
    board = machine("Cortex-A78AE", device="Jetson Orin Nano", power_mode="15W", clocks={"GPU": 624.0}) | {
        "celsius_before": {"gpu": 41.0},
        "celsius_after": {"gpu": 63.5},
        "throttling_events": 3,
    }
    answers = [
        {"name": "ssh:nano", "machine": board, "failure": None},
        {"name": "adb:77", "machine": None, "failure": "lost: unplugged"},
    ]
    return bench(row(), row("cpu-int8"), *there, *gone, devices=answers)


def run_folder(folder: Path, teacher: str = "EfficientNet-Lite0 (ImageNet)", phase: str = "two streams") -> Path:
    """A run folder with its config and log, and an evaluation in it with scores and a contact sheet."""
    (folder / "evaluation").mkdir(parents=True)
    config = {"recipe": {"name": "quick", "batch": 8}, "size": 224, "seed": 3, "teacher": teacher, "data": "parts"}
    (folder / "config.json").write_text(json.dumps(config))
    steps = [{"step": s, "phase": phase, "loss": math.exp(-s / 9), "plain": 0.1, "seconds": 2.5 * s} for s in range(30)]
    (folder / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"step": 30, "lo')
    return folder


def evaluation(folder: Path, defect: str = "scratch") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rates = {"image_auroc": 0.9712, "pixel_auroc": None, "aupro": None, "image_f1": 0.9, "threshold": 0.4}
    counts = {"false_alarms": 1, "missed": 2, "normal": 20, "anomalous": 20}
    scores = [{"score": n / 40, "defect": "good" if n < 20 else defect, "anomalous": n >= 20} for n in range(40)]
    metrics = rates | counts | {"by_defect": {defect: rates | counts}, "source": "parts", "scores": scores}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    Image.new("RGB", (300, 200), (90, 120, 90)).save(folder / "worst_misses.png")
    return folder


def render(tmp_path: Path, *inputs: object) -> Page:
    write_report(tmp_path / "report.html", *inputs)
    assert [path.name for path in tmp_path.glob("*report*")] == ["report.html"]
    return Page((tmp_path / "report.html").read_text("utf-8"))


def test_a_bench_alone_is_enough(tmp_path: Path) -> None:
    page = render(tmp_path, bench())
    assert "12 of 12 verdicts the same" in page.text
    assert "Example CPU" in page.text
    assert "Training took" not in page.text


def test_a_run_folder_alone_is_enough(tmp_path: Path) -> None:
    page = render(tmp_path, None, run_folder(tmp_path / "run"), None)
    assert "Training took 1 min 12 s" in page.text
    assert "Speed and cost" not in page.text


def test_everything_is_shown_together(tmp_path: Path) -> None:
    page = render(tmp_path, bench(), run_folder(tmp_path / "run"), evaluation(tmp_path / "run" / "evaluation"))
    assert page.elements.count("svg") == 7
    assert page.elements.count("img") == 1
    assert "0.971" in page.text
    assert "of 20 anomalous" in page.text
    assert "Worst misses" in page.text


def test_page_loads_nothing(tmp_path: Path) -> None:
    page = render(tmp_path, bench(), run_folder(tmp_path / "run"), evaluation(tmp_path / "run" / "evaluation"))
    assert page.fetched
    inline = r"#|data:image/jpeg;base64,[A-Za-z0-9+/=]*$"
    assert [address[:40] for address in page.fetched if not re.match(inline, address)] == []
    assert not re.search(r"https?://|@import|url\((?!#)", (tmp_path / "report.html").read_text("utf-8"))
    assert not {"script", "link", "iframe", "object", "base"} & set(page.elements)


def test_missing_values_are_marked(tmp_path: Path) -> None:
    measured = render(tmp_path, bench(row(accuracy={"image_auroc": 0.99, "pixel_auroc": None, "aupro": None})))
    assert measured.text.count("not measured") == len(TARGETS) - 1
    assert measured.text.count("n/a") == 3
    page = render(tmp_path, bench(row(latency_ms=None, peak_memory_mb=None, energy_mj=None)))
    in_the_card, latency, memory_and_energy = 5, 4, 2
    assert page.text.count("not measured") == in_the_card + latency + memory_and_energy + len(TARGETS)
    assert "stlm-bench takes labelled images by --data" in page.text


def test_measuring_conditions_are_shown(tmp_path: Path) -> None:
    slow = {"p50": 61.5, "p90": 63.0, "p99": 66.0, "p90_early_stopping": 64.4}
    placement = [
        {"by": "CPUExecutionProvider", "nodes": 40, "fell_back": True},
        {"by": "CUDAExecutionProvider", "nodes": 900, "fell_back": False},
    ]
    shown = render(
        tmp_path,
        bench(
            row(
                end_to_end_ms=slow,
                throughput=[{"streams": 2, "images_per_second": 31.25}],
                placement=placement,
                steady=False,
                energy_mj=412.5,
                timed_even_if_wrong=True,
            )
        ),
    ).text
    for words in ("end to end 62 63 66 64", "31.2/s by 2", "fell back: CPU (40 nodes)", "not steady"):
        assert words in shown, words
    assert "412.5\N{NO-BREAK SPACE}mJ" in shown or "412.5 mJ" in shown
    assert "cpu-fp32 wrong graph alone" in shown


def test_export_candidates_are_shown(tmp_path: Path) -> None:
    def candidate(kept: int, losses: list[str]) -> dict:
        layers = [f"plain.layers.3.blocks.{number}" for number in range(kept)]
        measured = {"bytes": 22_000_000 + kept * 400_000, "latency_ms": 40.0 + kept, "cosine": 0.9991 + kept * 1e-4}
        return {"kept_in_float": layers, "losses": losses, "verdict_failures": len(losses), **measured}

    def shown(candidates: object, **changes: object) -> Page:
        provenance = {"candidates": candidates, "notes": ["computed in float32: fa"]}
        folder = write_tiny_bundle(tmp_path / "bundles" / "cpu-int8", provenance=provenance, force=True)
        given = row("cpu-int8", bundle="b", **changes)
        return render(tmp_path, bench(given), None, None, {"b": open_bundle(folder)})

    page = shown(
        [candidate(0, ["1 of 56 verdicts fail"]) | {"scope": "all of it"}, candidate(2, []) | {"latency_ms": None}]
    )
    assert "Candidates of the exports" in page.text
    assert "1 all of it 0 groups of layers 22.0\N{NO-BREAK SPACE}MB" in page.text or "1 all of it 0 groups" in page.text
    assert "1 of 56 verdicts fail" in page.text
    assert "Kept in float: plain.layers.3.blocks.0, plain.layers.3.blocks.1" in page.text
    assert "computed in float32: fa" in page.text
    assert "Candidates of the exports" not in shown([{"kept_in_float": 3}]).text
    assert "Candidates of the exports" not in shown([candidate(0, [])], target=None).text


def test_targets_without_a_measurement_are_listed(tmp_path: Path) -> None:
    text = render(tmp_path, bench()).text
    assert "cpu model.onnx onnxruntime cpu-fp32 on this machine" in text
    assert "android model.tflite litert not measured" in text
    elsewhere = row(device="web", target="web", runtime="onnxruntime-web/wasm")
    answer = {"name": "web", "machine": machine("Example CPU"), "failure": None}
    text = render(tmp_path, bench(elsewhere, devices=[answer])).text
    assert "web model.onnx onnxruntime-web cpu-fp32 on web" in text
    assert "this machine" not in text


def test_each_device_has_a_summary_and_its_own_rows(tmp_path: Path) -> None:
    page = render(tmp_path, host_and_board())
    begin = page.text[: page.text.index("Devices Example")]
    assert "Same verdicts as the trained model on 1 of 2 devices; 1 more returned no result" in begin
    assert "Example CPU this machine ✓ same verdicts" in begin
    assert "Jetson Orin Nano ssh:nano ✗ 1 of 2 artifacts failed" in begin
    assert "5.2 ms per image, p90 Artifact cpu-fp32, fp32 Energy per image 12.5" in begin
    assert "adb:77 returned no result: lost: unplugged" in begin
    assert page.text.count("lost: unplugged") == 1
    board = page.text[page.text.index("Devices Example") :]
    board = board[board.index("Jetson Orin Nano ssh:nano") :]
    for fact in (
        "power mode 15W",
        "GPU\N{NO-BREAK SPACE}624",
        "gpu\N{NO-BREAK SPACE}41.0",
        "gpu\N{NO-BREAK SPACE}63.5",
    ):
        assert fact.replace("\N{NO-BREAK SPACE}", " ") in board.replace("\N{NO-BREAK SPACE}", " "), fact
    assert "throttling events 3" in board
    assert "cpu-fp32 on ssh:nano" in page.text
    assert "cpu-fp32 on this machine" in page.text


def test_speeds_are_compared_within_a_device_only(tmp_path: Path) -> None:
    text = render(tmp_path, host_and_board()).text
    assert re.findall(r"([\d.]+)× cpu-fp32", text) == ["1.0"]
    assert "Speeds are compared within a device only" in text


def test_the_headline_of_several_devices_names_each(tmp_path: Path) -> None:
    rows = [strict_json.read(Row, each, "row") for each in host_and_board()["rows"]]
    text = headline(rows)
    assert text.startswith(
        "same verdicts as the trained model on 1 of 3 devices. this machine: cpu-fp32: same verdicts"
    )
    assert "cpu-int8 on ssh:nano FAILED: its process was ended by signal 11" in text
    assert "cpu-fp32 on adb:77 FAILED: lost: unplugged" in text
    alone = headline([row for row in rows if row.device == "ssh:nano" and row.passed])
    assert alone.endswith("images; p50 4.0 ms, p90 5.2 ms; 12.5 mJ per image")


def test_untimed_row_is_reported_without_latency(tmp_path: Path) -> None:
    times = dict.fromkeys(("latency_ms", "end_to_end_ms", "load_ms", "first_inference_ms", "energy_mj"))
    emulated_row = row(device="ssh:arm", untimed="emulated by qemu", throughput=[], round_p50_ms=[], **times)
    answer = {"name": "ssh:arm", "machine": machine("arm", emulated="qemu-user"), "failure": None}
    page = render(tmp_path, bench(emulated_row, row("here"), devices=[answer]))
    assert "cpu-fp32 on ssh:arm has no latency" in page.text
    assert "Artifact here, fp32" in page.text
    assert "Artifact cpu-fp32, fp32" not in page.text
    assert "emulated by qemu" in page.text
    assert "12 of 12 verdicts the same" in page.text


def test_fallback_row_is_marked(tmp_path: Path) -> None:
    placement = [{"by": "CPUExecutionProvider", "nodes": 40, "fell_back": True}]
    page = render(tmp_path, bench(row(placement=placement), row("other")))
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "✗ fell back: CPU (40 nodes)" in page.text
    red = re.findall(r'<tr class="bad"><td>([^<]*)', html)
    assert set(red) == {"cpu-fp32"}
    assert len(red) >= 4


def test_difference_that_is_not_finite_is_drawn_as_such(tmp_path: Path) -> None:
    broken = row("cpu-int8", passed=False, failure="the map is not finite")
    for image in broken["golden"]:
        image["max_abs_diff"] = None
    broken["parity"]["max_abs_diff"] = None
    render(tmp_path, bench(row(), broken))
    html = (tmp_path / "report.html").read_text("utf-8")
    assert ">not finite</text>" in html
    assert "not finite" not in render(tmp_path, bench()).text


def test_charts_show_every_row(tmp_path: Path) -> None:
    quantiles = [50 + percent / 10 for percent in range(101)]
    rows = [row("same-name", quantiles_ms=quantiles) for _ in range(3)]
    rows += [row(f"artifact-{number}", quantiles_ms=quantiles) for number in range(4)]
    rows += [row("median-alone", latency_ms={"p50": 9.0, "p90": None, "p99": None, "p90_early_stopping": None})]
    render(tmp_path, bench(*rows))
    charts = re.findall("<svg.*?</svg>", (tmp_path / "report.html").read_text("utf-8"), re.DOTALL)
    names = [f"artifact-{number}" for number in range(4)] + [
        "same-name by onnxruntime",
        "same-name (2)",
        "median-alone",
    ]
    for words in ("scores of the trained", "largest map difference", "latency per artifact", "median of each round"):
        drawn = "".join(chart for chart in charts if f'aria-label="{words}' in chart)
        assert [name for name in names if f">{name}</text>" not in drawn] == [], words


def test_largest_map_difference_is_shown_magnified(tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)

    class Perturbed:
        name, size = "perturbed", bundle.runtime.size

        def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
            anomaly_map, score = bundle.runtime.run(image)
            return anomaly_map + np.float32(0.125) * (np.arange(self.size)[:, None] == 7), score

    _, answers, _ = parity_of(Perturbed(), bundle, "int8")
    worst = worst_of(Perturbed(), bundle, answers)
    assert worst.max_abs_diff == pytest.approx(0.125, abs=1e-5)
    recorded = json.loads(strict_json.dump(worst))
    page = render(tmp_path, bench(row(bundle="b", worst=recorded)), None, None, {"b": bundle})
    assert "difference × 8" in page.text
    assert "the maps differ by 0.1250 at most" in page.text
    assert page.elements.count("img") == 4
    for odd in ({**recorded, "map": ["AA=="] * 3}, {**recorded, "map": ["no base64"]}, {**recorded, "name": "unknown"}):
        assert render(tmp_path, bench(row(bundle="b", worst=odd)), None, None, {"b": bundle}).elements.count("img") == 0


def test_profile_is_shown(tmp_path: Path) -> None:
    parts = [
        {"name": "encoders, stage 0", "ms": 30.0, "gflop": 1.5, "megabytes": 150.0},
        {"name": "normalisation, map, score", "ms": 10.0, "gflop": 0.0, "megabytes": 5.0},
    ]
    profile = {"parts": parts, "gflop_per_second": 200.0, "gigabyte_per_second": 20.0}
    text = render(tmp_path, bench(row(profile=profile))).text
    assert "1. encoders, stage 0 30.00 75% 1.50 150.0 50 25%" in text
    assert "2. normalisation, map, score 10.00 25%" in text
    assert "Roofline of cpu-fp32" in text


def test_failed_artifact_is_marked(tmp_path: Path) -> None:
    page = render(tmp_path, bench(row(), row("cpu-int8", passed=False, failure="2 of 12 verdicts fail")))
    assert "✗ failed, 12 of 12 verdicts the same" in page.text
    assert "cpu-int8: 2 of 12 verdicts fail" in page.text
    page = render(tmp_path, bench(row(passed=False, failure="ended by signal 11", parity=None, golden=[])))
    assert "✗ did not run" in page.text


def test_flip_is_listed_with_its_image(tmp_path: Path) -> None:
    flipped = row()
    flipped["golden"][5] |= {"verdict": "flip", "score": 0.4811, "expected_score": 0.4793}
    page = render(tmp_path, bench(flipped))
    assert "part-05: flip within the tolerance: score 0.48110, trained model 0.47930" in page.text


def test_proxy_teacher_is_named(tmp_path: Path) -> None:
    notice = "come from a proxy teacher, not from SAM"
    assert notice in render(tmp_path, bench(row(teacher="EfficientNet-Lite0"))).text
    assert notice in render(tmp_path, None, run_folder(tmp_path / "run")).text
    assert notice not in render(tmp_path, bench(row(teacher="sam-vit_h"))).text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = row(HOSTILE, failure=HOSTILE, runtime=HOSTILE, teacher=HOSTILE)
    hostile["golden"][0]["name"] = HOSTILE
    given = bench(hostile) | {"headline": HOSTILE, "command": HOSTILE, "data": HOSTILE}
    folder = run_folder(tmp_path / "run", teacher=HOSTILE, phase=HOSTILE)
    page = render(tmp_path, given, folder, evaluation(folder / "evaluation", HOSTILE))
    assert not {"script", "b"} & set(page.elements)
    assert '<script>alert("$x$")</script>' in page.text
    assert "1337" not in page.text


def test_flat_or_damaged_log_is_drawn(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "log.jsonl").write_text(
        '{"step": 0, "loss": 0}\n[1]\n{"step": "x", "loss": 1}\n{"step": 1, "loss": NaN}\n\xff\n'
    )
    assert render(tmp_path, None, folder).elements.count("svg") == 1


def test_damaged_evaluation_is_refused(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "evaluation")
    (folder / "metrics.json").write_text("{")
    with pytest.raises(UsageError, match=r"metrics\.json.*JSON"):
        write_report(tmp_path / "report.html", bench(), None, folder)
    assert not list(tmp_path.glob("*report*"))
