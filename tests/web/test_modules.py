"""The page's modules, run in Node.js: they compute and refuse the same as the Python package."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_image

from stlm_edge import heatmap
from stlm_edge.bench.percentiles import early_stopping, percentile
from stlm_edge.bundle.golden import GoldenCandidate
from stlm_edge.bundle.manifest import MANIFEST
from stlm_edge.bundle.parity import compare, problems
from stlm_edge.images import resize
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.verdict import score_of_map

Ask = Callable[[list[dict]], list[dict]]
SCHEMA = json.loads(resources.files("stlm_edge").joinpath("schemas/manifest-1.schema.json").read_text("utf-8"))


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_resize_matches_python_within_one_grey_level(in_node: Ask) -> None:
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (63, 200), (500, 31), (1, 1), (2, 700), (1280, 3), (300, 300)]
    images = [rng.integers(0, 256, (height, width, 3), np.uint8) for width, height in sizes]
    tasks = [
        {
            "task": "resize",
            "width": image.shape[1],
            "height": image.shape[0],
            "size": 64,
            "rgba": text(np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]).tobytes()),
        }
        for image in images
    ]
    for image, answer in zip(images, in_node(tasks), strict=True):
        square = np.frombuffer(base64.b64decode(answer["answer"]), np.uint8).reshape(64, 64, 3)
        expected = resize(Image.fromarray(image), 64)
        assert np.abs(square.astype(int) - expected).max() <= 1, image.shape


def test_score_is_mean_of_100_highest_values(in_node: Ask) -> None:
    maps = [np.random.default_rng(seed).random((side, side), np.float32) for seed, side in enumerate((5, 64, 224))]
    answers = in_node([{"task": "score", "map": text(each.tobytes())} for each in maps])
    assert [answer["answer"] for answer in answers] == pytest.approx([score_of_map(each) for each in maps], abs=1e-12)


def test_percentiles_match_bench(in_node: Ask) -> None:
    rng = np.random.default_rng(1)
    series = [rng.gamma(9, 2, count).tolist() for count in (1, 43, 44, 128, 1024)]
    answers = in_node([{"task": "percentiles", "values": values} for values in series])
    for values, answer in zip(series, answers, strict=True):
        expected = [*(percentile(values, share) for share in (0.5, 0.9, 0.99)), early_stopping(values)]
        assert answer["answer"] == expected, len(values)


def test_heatmap_has_colours_of_python_and_is_transparent_where_normal(in_node: Ask) -> None:
    decision_threshold = DecisionThreshold(0.5, 0.3, 0.2, 0.8, 0.01, 20, "quantile", 0.0, "training")
    levels = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    task = {
        "task": "layer",
        "map": text(levels.tobytes()),
        "side": 64,
        "decision_threshold": asdict(decision_threshold),
    }
    (answer,) = in_node([task])
    rgba = np.frombuffer(base64.b64decode(answer["answer"]), np.uint8).reshape(64, 64, 4)
    assert np.abs(rgba[..., :3].astype(int) - heatmap.colour(levels, decision_threshold)).max() <= 3  # one level of 255
    assert (rgba[..., 3][levels <= 0.34] == 0).all()
    assert (rgba[..., 3][levels >= 0.51] == 255).all()


def test_parity_matches_python(in_node: Ask) -> None:
    rng = np.random.default_rng(2)
    golden, answers = [], []
    for number, (score, answered) in enumerate([(0.2, 0.2), (0.499, 0.501), (0.6, 0.4), (0.7, 0.7), (0.3, np.nan)]):
        full = rng.random((64, 64), np.float32)
        golden.append(
            GoldenCandidate(f"{number}", Image.new("RGB", (1, 1)), False, np.zeros(1), full[1::3, 1::3], score, 3, 1)
        )
        answers.append((full + rng.normal(0, 1e-3, full.shape).astype(np.float32), float(answered)))
    answers[3][0][5, 5] = np.inf
    for kept in (slice(0, 3), slice(0, 5)):
        expected, rows = compare(golden[kept], answers[kept], 0.5, 0.002)
        task = {
            "task": "parity",
            "manifest": {"decision_threshold": {"value": 0.5}, "verdict_delta": 0.002, "side": 64, "precision": "fp16"},
            "golden": [
                {
                    "entry": {
                        "name": each.name,
                        "anomalous": False,
                        "score": each.score,
                        "map": {"stride": 3, "offset": 1, "shape": each.map.shape},
                    },
                    "map": text(each.map.tobytes()),
                }
                for each in golden[kept]
            ],
            "answers": [
                {"map": text(found.tobytes()), "score": None if np.isnan(score) else score}
                for found, score in answers[kept]
            ],
        }
        (answer,) = in_node([task])
        found = answer["answer"]
        assert (found["total"]["verdict_flips"], found["total"]["verdict_failures"]) == (
            expected.verdict_flips,
            expected.verdict_failures,
        )
        for mine, theirs in zip(found["rows"], rows, strict=True):
            if np.isfinite(theirs.max_abs_diff):
                assert mine["max_abs_diff"] == pytest.approx(theirs.max_abs_diff, rel=1e-6)
                assert mine["cosine"] == pytest.approx(theirs.cosine, rel=1e-6)
            else:
                assert mine["max_abs_diff"] is None
                assert mine["verdict"] == "failure"
        assert len(found["problems"]) == len(problems(expected, "fp16"))


def changed(manifest: dict, *path: object, to: object = None) -> str:
    """The manifest's text with one value replaced, or removed."""
    copy = json.loads(json.dumps(manifest))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return json.dumps(copy)


def test_manifest_is_read_as_strictly_as_in_python(in_node: Ask, tiny_bundle: Path) -> None:
    intact = (tiny_bundle / MANIFEST).read_text()
    manifest = json.loads(intact)
    wrong = {
        "not valid JSON": intact[:-2],
        "duplicate key": intact.replace('"target"', '"target": "x", "target"', 1),
        "bundle format 2": changed(manifest, "format_version", to=2),
        "bundle format undefined": "[]",
        "target cpu with runtime coreml, expected a bundle of target web": changed(manifest, "runtime", to="coreml"),
        "unknown key": changed(manifest, "input", "more", to=1),
        "score_rule: missing": changed(manifest, "score_rule"),
        "expected at most 4096": changed(manifest, "input", "size", to=1 << 30),
        "files[0].path": changed(manifest, "files", 0, "path", to="../../etc/passwd"),
        "files[0].sha256": changed(manifest, "files", 0, "sha256", to="0" * 63),
        "a path is listed twice": changed(manifest, "files", 1, "path", to=manifest["files"][0]["path"]),
        "multiple of 32": changed(manifest, "input", "size", to=65),
        "is not in files": changed(manifest, "artifact", to="other.onnx"),
        "expected at least 8 items": changed(manifest, "golden", to=manifest["golden"][:7]),
        "verdict_delta": changed(manifest, "verdict_delta", to=0.5),
        "value < median_score": changed(manifest, "decision_threshold", "median_score", to=9.0),
        "tensor.shape": changed(manifest, "golden", 0, "tensor", "shape", to=[64, 64, 4]),
        "map.shape": changed(manifest, "golden", 0, "map", "stride", to=2),
        "score_rule: found": changed(manifest, "score_rule", to="the highest value"),
        "more than 256 MB": changed(manifest, "files", 0, "bytes", to=300_000_000),
        "8000000 are allowed": changed(manifest, "files", 1, "bytes", to=9_000_000),
        "too large a number": intact.replace('"flops": null', '"flops": 1e999'),
    }
    tasks = [{"task": "manifest", "text": each, "schema": SCHEMA} for each in (intact, *wrong.values())]
    first, *answers = in_node(tasks)
    assert first == {"answer": 1}
    for words, answer in zip(wrong, answers, strict=True):
        assert words in answer.get("problem", "accepted"), words
        assert "\n" not in answer["problem"]


def test_problem_is_reported_without_access_to_caches(in_node: Ask, tiny_bundle: Path) -> None:
    wrong = changed(json.loads((tiny_bundle / MANIFEST).read_text()), "verdict_delta", to=0.5)
    (answer,) = in_node([{"task": "opened", "text": wrong, "schema": SCHEMA}])
    assert "verdict_delta" in answer["problem"]


def test_damaged_manifests_never_raise_unexpected_errors(in_node: Ask, tiny_bundle: Path) -> None:
    intact = (tiny_bundle / MANIFEST).read_text()
    rng = np.random.default_rng(3)
    tasks = []
    for _ in range(400):
        letters = list(intact)
        for at in rng.integers(0, len(letters), 3):
            letters[at] = chr(rng.integers(32, 127))
        tasks.append({"task": "manifest", "text": "".join(letters), "schema": SCHEMA})
    answers = in_node(tasks)
    assert sum("problem" in answer for answer in answers) > 200


def test_header_has_size_and_orientation(in_node: Ask) -> None:
    image = tiny_image(1, width=70, height=50)
    tasks, expected = [], []
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        for orientation in (1, 3, 6, 8) if kind != "BMP" else (1,):
            exif = Image.Exif()
            exif[0x0112] = orientation
            buffer = io.BytesIO()
            image.save(buffer, kind, **({} if kind == "BMP" else {"exif": exif}))
            tasks.append({"task": "header", "file": text(buffer.getvalue())})
            expected.append({"answer": {"width": 70, "height": 50, "orientation": orientation}})
    assert in_node(tasks) == expected


def test_damaged_images_never_raise_unexpected_errors(in_node: Ask) -> None:
    rng = np.random.default_rng(4)
    tasks, cut = [], []
    for kind in ("JPEG", "PNG", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = 6
        buffer = io.BytesIO()
        tiny_image(1).save(buffer, kind, exif=exif)
        whole = buffer.getvalue()
        for share in (0.1, 0.5, 0.9):
            cut.append({"task": "header", "file": text(whole[: int(len(whole) * share)])})
        for _ in range(150):
            damaged = bytearray(whole)
            for at in rng.integers(0, min(len(whole), 400), size=3):
                damaged[at] = rng.integers(256)
            tasks.append({"task": "header", "file": text(bytes(damaged))})
    answers = in_node(cut + tasks)
    assert all("truncated" in answer.get("problem", "accepted") for answer in answers[: len(cut)])
