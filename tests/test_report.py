"""The report stands alone, shows what was measured, and says so where nothing was."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from stlm_edge.errors import UsageError
from stlm_edge.report import write_report
from stlm_edge.targets import TARGETS

HOSTILE = '<script>alert("$x$")</script>&<b>\x07{{ 7 * 191 }}'


class Page(HTMLParser):
    """What a browser would make of a page: its elements, its attributes that may fetch something, its words."""

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
        "target": "cpu",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "teacher": None,
        "input_size": 224,
        "size_mb": 66.9,
        "threads": 1,
        "passed": True,
        "failure": None,
        "parity": parity | {"score_max_diff": 0.0, "resize_max_diff": 0, "pictures": 12},
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
        "throughput": [{"streams": 2, "pictures_per_second": 33.0}],
        "energy_mj": 300.0,
        "round_p50_ms": [54.0, 54.4, 55.0],
        "accuracy": None,
    } | changes


def bench(*rows: dict) -> dict:
    return {
        "headline": "cpu-fp32: same verdicts as the trained model on 12 of 12 pictures; p50 54 ms",
        "date": "2026-01-02T03:04:05Z",
        "command": "stlm-bench --bundle bundles/cpu-fp32 --out out",
        "machine": {"processor": "Example CPU", "architecture": "x86_64", "cores": 2, "packages": {"numpy": "2.0"}},
        "rows": list(rows) or [row()],
    }


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
    figures = {"image_auroc": 0.9712, "pixel_auroc": None, "aupro": None, "image_f1": 0.9, "threshold": 0.4}
    counts = {"false_alarms": 1, "missed": 2, "normal": 20, "anomalous": 20}
    scores = [{"score": n / 40, "defect": "good" if n < 20 else defect, "anomalous": n >= 20} for n in range(40)]
    metrics = figures | counts | {"by_defect": {defect: figures | counts}, "source": "parts", "scores": scores}
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
    assert "What was trained" not in page.text


def test_a_run_folder_alone_is_enough(tmp_path: Path) -> None:
    page = render(tmp_path, None, run_folder(tmp_path / "run"), None)
    assert "What was trained" in page.text
    assert "Training took 1 min 12 s" in page.text
    assert "Speed and cost" not in page.text


def test_everything_is_shown_together(tmp_path: Path) -> None:
    page = render(tmp_path, bench(), run_folder(tmp_path / "run"), evaluation(tmp_path / "run" / "evaluation"))
    assert page.elements.count("svg") == 7
    assert page.elements.count("img") == 1
    assert "0.971" in page.text
    assert "of 20 anomalous" in page.text
    assert "Worst misses" in page.text


def test_nothing_is_fetched(tmp_path: Path) -> None:
    page = render(tmp_path, bench(), run_folder(tmp_path / "run"), evaluation(tmp_path / "run" / "evaluation"))
    assert page.fetched
    assert [address[:22] for address in page.fetched if not re.match(r"#|data:image/jpeg;base64,", address)] == []
    assert not re.search(r"https?://|@import|url\((?!#)", (tmp_path / "report.html").read_text("utf-8"))
    assert not {"script", "link", "iframe", "object", "base"} & set(page.elements)


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    measured = render(tmp_path, bench(row(accuracy={"image_auroc": 0.99, "pixel_auroc": None, "aupro": None})))
    other_targets = measured.text.count("not measured")
    assert other_targets == len(TARGETS) - 1
    assert measured.text.count("n/a") == 2
    page = render(tmp_path, bench(row(latency_ms=None, peak_memory_mb=None)))
    latency_in_card_and_table, memory_in_card_and_table, accuracy, speed = 5, 2, 3, 1
    assert page.text.count("not measured") == sum(
        [latency_in_card_and_table, memory_in_card_and_table, accuracy, speed, len(TARGETS)]
    )


def test_what_a_latency_was_taken_under_is_shown(tmp_path: Path) -> None:
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
                throughput=[{"streams": 2, "pictures_per_second": 31.25}],
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


def test_what_an_export_tried_is_shown(tmp_path: Path) -> None:
    def tried(kept: int, losses: list[str]) -> dict:
        layers = [f"plain.layers.3.blocks.{number}" for number in range(kept)]
        figures = {"bytes": 22_000_000 + kept * 400_000, "latency_ms": 40.0 + kept, "cosine": 0.9991 + kept * 1e-4}
        return {"kept": layers, "losses": losses, "verdict_failures": len(losses), **figures}

    frontiers = {"cpu-int8": [tried(0, ["1 of 56 verdicts fail"]), tried(2, [])], "torch": None, "odd": [{"kept": 3}]}
    page = render(tmp_path, bench(), None, None, frontiers)
    assert "What the export of cpu-int8 tried" in page.text
    assert "1 of 56 verdicts fail" in page.text
    assert "2 groups 22.8\N{NO-BREAK SPACE}MB" in page.text or "2 groups 22.8 MB" in page.text
    assert "Kept in float: plain.layers.3.blocks.0, plain.layers.3.blocks.1" in page.text
    assert "export of torch" not in page.text
    assert "export of odd" not in page.text


def test_devices_that_nothing_ran_on_are_named(tmp_path: Path) -> None:
    text = render(tmp_path, bench()).text
    assert "cpu model.onnx onnxruntime cpu-fp32" in text
    assert "android model.tflite litert not measured" in text


def test_a_failed_artifact_is_marked(tmp_path: Path) -> None:
    page = render(tmp_path, bench(row(), row("cpu-int8", passed=False, failure="2 of 12 verdicts fail")))
    assert "✗ failed, 12 of 12 verdicts the same" in page.text
    assert "cpu-int8: 2 of 12 verdicts fail" in page.text
    page = render(tmp_path, bench(row(passed=False, failure="ended by signal 11", parity=None, golden=[])))
    assert "✗ did not run" in page.text


def test_a_flip_is_listed_with_its_picture(tmp_path: Path) -> None:
    flipped = row()
    flipped["golden"][5] |= {"verdict": "flip", "score": 0.4811, "expected_score": 0.4793}
    page = render(tmp_path, bench(flipped))
    assert "part-05: flip within the tolerance: score 0.48110 where the trained model said 0.47930" in page.text


def test_figures_of_the_stand_in_teacher_say_so(tmp_path: Path) -> None:
    notice = "come from a stand-in teacher, not from SAM"
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


def test_a_flat_or_broken_log_is_no_obstacle(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "log.jsonl").write_text(
        '{"step": 0, "loss": 0}\n[1]\n{"step": "x", "loss": 1}\n{"step": 1, "loss": NaN}\n\xff\n'
    )
    assert render(tmp_path, None, folder).elements.count("svg") == 1


def test_a_damaged_evaluation_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "evaluation")
    (folder / "metrics.json").write_text("{")
    with pytest.raises(UsageError, match=r"metrics\.json: not valid JSON"):
        write_report(tmp_path / "report.html", bench(), None, folder)
    assert not list(tmp_path.glob("*report*"))
