"""The Android demo's core gives the same results as Python, under JUnit on a JVM; the Java tests are in `java/`."""

import base64
import copy
import io
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import jdk
import jsonschema
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_image
from tiny_tflite import tiny_model, write_tflite

import stlm_edge
from stlm_edge import strict_json
from stlm_edge.bench.latency import parity_of
from stlm_edge.bench.percentiles import early_stopping, percentile
from stlm_edge.bundle import Bundle, open_bundle
from stlm_edge.bundle.manifest import Manifest
from stlm_edge.errors import UsageError
from stlm_edge.export.web_site import page_files
from stlm_edge.formats.tflite import read_metadata
from stlm_edge.heatmap import _FADE, colour
from stlm_edge.images import PREPROCESSING, SIXTEEN_BIT, load
from stlm_edge.verdict import SCORE_RULE, is_anomalous, score_of_map

SCHEMA = json.loads((Path(stlm_edge.__file__).parent / "schemas" / "bench-1.schema.json").read_text("utf-8"))
RNG = np.random.default_rng(0)


class Perturbed:
    """A runtime whose maps are the golden ones with noise, so that some verdicts flip."""

    name = "perturbed"

    def __init__(self, bundle: Bundle) -> None:
        self.size = bundle.manifest.input.size
        self.answers = []
        for golden in bundle.golden():
            noise = RNG.normal(0, 0.02, golden.map.shape)
            answer = (golden.map + noise).clip(0, 1).astype(np.float32)
            self.answers.append((golden.tensor, answer, score_of_map(answer)))

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        return next((answer, score) for tensor, answer, score in self.answers if np.array_equal(tensor, image))


@pytest.fixture(scope="module")
def fixtures(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fixtures of the Java tests: a bundle, and Python's results for images, maps, latencies and manifests."""
    folder = tmp_path_factory.mktemp("fixtures")
    shutil.copytree(tiny_bundle, folder / "bundle")
    for name in ("resize", "maps", "answers"):
        (folder / name).mkdir()
    lay_out_images(folder / "resize", open_bundle(tiny_bundle))
    lay_out_maps(folder)
    decision_threshold = open_bundle(tiny_bundle).manifest.decision_threshold
    ramp = np.linspace(decision_threshold.map_low - 0.05, decision_threshold.map_high + 0.05, 4096, dtype=np.float32)
    ramp.tofile(folder / "maps/ramp.f32")
    lay_out_heatmap(folder, ramp, decision_threshold)
    lay_out_frame(folder)
    lists = [RNG.gamma(3, 5, count).round(4).tolist() for count in (1, 2, 9, 10, 11, 43, 44, 100, 128, 1024)]
    shares = (0.5, 0.9, 0.99)
    lines = [[*(percentile(v, share) for share in shares), early_stopping(v) or -1.0, *v] for v in lists]
    (folder / "percentiles.txt").write_text("\n".join(" ".join(map(repr, line)) for line in lines))
    (folder / "manifests.txt").write_text("\n".join(judged_manifests(tiny_bundle / "manifest.json")))
    lines = [f"{base64_of(data)} {answer}" for data, answer in headers()]
    (folder / "headers.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "metadata.txt").write_text("\n".join(judged_models(folder / "model.tflite")))
    return folder


@pytest.fixture(scope="module")
def perturbed(tiny_bundle: Path, fixtures: Path) -> Perturbed:
    runtime = Perturbed(open_bundle(tiny_bundle))
    for number, (_, answer, _) in enumerate(runtime.answers):
        answer.tofile(fixtures / f"answers/{number}.f32")
    return runtime


def lay_out_images(folder: Path, bundle: Bundle) -> None:
    """Images of many shapes, sizes and EXIF orientations, with the squares that Python makes of them."""
    cases = [(1, 1, 32, 1), (2, 3, 32, 1), (31, 400, 64, 1), (400, 31, 64, 1), (64, 64, 64, 1), (640, 480, 224, 1)]
    cases += [(1, 500, 32, 1), (500, 1, 32, 1), (97, 101, 96, 1), (1000, 700, 96, 1), (33, 65, 224, 1)]
    cases += [(90, 120, 64, orientation) for orientation in range(1, 9)] + [(123, 77, 32, o) for o in range(1, 9)]
    for number, (width, height, size, orientation) in enumerate(cases):
        image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
        stem = folder / f"{number}-{size}-{orientation}"
        image.save(stem.with_suffix(".png"))
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(folder / "turned.png", exif=exif)
        load(folder / "turned.png", size).tofile(stem.with_suffix(".rgb"))
    (folder / "turned.png").unlink()
    for number, golden in enumerate(bundle.golden(), len(cases)):
        shutil.copy(golden.image_path, folder / f"{number}-{bundle.manifest.input.size}-1.png")
        golden.tensor.tofile(folder / f"{number}-{bundle.manifest.input.size}-1.rgb")


def lay_out_frame(folder: Path) -> None:
    """A camera's frame of 37×21: brightness in rows of 48 bytes, both colours by turns in rows of 64."""
    bright = RNG.integers(0, 256, (21, 48), dtype=np.uint8)
    colours = RNG.integers(0, 256, (11, 32, 2), dtype=np.uint8)
    bright.tofile(folder / "frame.y")
    colours.tofile(folder / "frame.uv")
    full = colours.repeat(2, axis=0).repeat(2, axis=1)[:21, :37]
    frame = Image.fromarray(np.dstack([bright[:, :37], full]), "YCbCr")
    np.asarray(frame.convert("RGB")).tofile(folder / "frame.rgb")


def lay_out_maps(folder: Path) -> None:
    maps = [RNG.random((side, side)).astype(np.float32) ** power for side in (5, 10, 11, 64, 224) for power in (1, 6)]
    maps += [np.full((64, 64), 0.25, np.float32), np.zeros((32, 32), np.float32)]
    lines = []
    for number, values in enumerate(maps):
        values.tofile(folder / f"maps/{number}.f32")
        score = score_of_map(values)
        for threshold in (score - 1e-9, score, score + 1e-9):
            lines.append(f"{number}.f32 {score!r} {threshold!r} {str(is_anomalous(score, threshold)).lower()}")
    (folder / "scores.txt").write_text("\n".join(lines))


def lay_out_heatmap(
    folder: Path, ramp: np.ndarray, decision_threshold: stlm_edge.bundle.manifest.DecisionThreshold
) -> None:
    rgb = colour(ramp, decision_threshold)
    span = decision_threshold.map_high - decision_threshold.map_low
    levels = (np.clip((ramp - decision_threshold.map_low) / span, 0, 1) * 255).round().astype(int)
    alpha = (255 * 0.65 * _FADE).round().astype(np.uint8)[levels]
    np.stack([rgb[:, 2], rgb[:, 1], rgb[:, 0], alpha], axis=1).tofile(folder / "ramp.argb")


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def headers() -> list[tuple[bytes, str]]:
    """Return image files with size and orientation, the reason to refuse them, or ? if damaged."""
    cases = []
    image = tiny_image(1, width=70, height=50)
    for kind in ("JPEG", "PNG", "WEBP"):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            cases.append((saved(image, kind, exif=exif), f"70 50 {orientation}"))
        whole = cases[-1][0]
        cases += [(whole[: int(len(whole) * share)], "truncated") for share in (0.1, 0.5, 0.9)]
        for _ in range(150):
            damaged = bytearray(whole)
            for at in RNG.integers(0, min(len(whole), 400), size=3):
                damaged[at] = RNG.integers(256)
            cases.append((bytes(damaged), "?"))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    cases += [(saved(image, "JPEG", xmp=xmp), "70 50 6"), (saved(image, "WEBP", lossless=True), "70 50 1")]
    cases += [(saved(image, "BMP"), "70 50 1"), (saved(image, "JPEG", progressive=True), "70 50 1")]
    cases += [(saved(image.convert("CMYK"), "JPEG"), "CMYK"), (saved(image.convert("L"), "JPEG"), "70 50 1")]
    two = {"save_all": True, "append_images": [tiny_image(2, width=70, height=50)]}
    cases += [(saved(image, "PNG", **two), "animated"), (saved(image, "WEBP", **two), "animated")]
    cases += [(saved(image, "GIF"), "(a GIF)"), (saved(image, "TIFF"), "(a TIFF)"), (b"", "(the file is empty)")]
    cases += [(b"words in a file called .png", "not an image"), (b"\0\0\0\x18ftypheic" + bytes(16), "not an image")]
    large = bytearray(saved(image, "PNG"))
    large[16:24] = (20_000).to_bytes(4, "big") * 2
    return [*cases, (bytes(large), "20000×20000, more than 100,000,000 pixels")]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def judged_models(path: Path) -> list[str]:
    """Return TFLite files, intact and damaged, each with the metadata that Python reads."""
    contents = [None, b"{}", b'{"a": 1}', b"[]", b"not JSON", b'{"a": "1", "a": "2"}', b'{"a": "\xff"}']
    contents += [json.dumps({"threshold": "0.5", "größe": "Δ" * 100, "empty": ""}).encode() + b" " * 100]
    lines = []
    for content in contents:
        write_tflite(path, tiny_model(64, content))
        lines.append(judged_model(path))
    whole = path.read_bytes()
    for turn in range(400):
        damaged = bytearray(whole if turn % 8 else whole[: RNG.integers(len(whole))])
        for at in RNG.integers(0, len(damaged) or 1, size=turn % 4 * 4):
            damaged[at % len(damaged)] = RNG.integers(256)
        path.write_bytes(damaged)
        lines.append(judged_model(path))
    return lines


def judged_model(path: Path) -> str:
    try:
        answer = base64_of(json.dumps(read_metadata(path)).encode())
    except UsageError:
        answer = "refused"
    return f"{base64_of(path.read_bytes())} {answer}"


def judged_manifests(path: Path) -> list[str]:
    """Return the manifest and several hundred variants, each accepted or refused by Python's reader."""
    intact = json.loads(path.read_text())
    texts = [json.dumps(intact, indent=2), json.dumps(intact)]
    random.seed(0)
    odd = [None, True, -1, 0, 1.5, 1e300, "", "../x", "a/../b", "/etc/passwd", "a//b", "ok.bin", [], {}, [1], "é" * 200]
    for where in places(intact):
        for value in [*random.sample(odd, 3), "(gone)"]:
            changed = copy.deepcopy(intact)
            change(changed, where, value)
            texts.append(json.dumps(changed, ensure_ascii=False))
    extra = copy.deepcopy(intact)
    extra["surprise"] = extra["golden"][0]["surprise"] = 1
    texts.append(json.dumps(extra))
    text = json.dumps(intact)
    texts += [text + " ", text + "x", text[:-1], "\ufeff" + text, text.replace("true", "TRUE"), text.replace('"', "'")]
    texts += ["[" * 2000, "null", "{}", "[]", '"a"', "NaN", text.replace('"parameters": 0', '"parameters": NaN')]
    texts += [
        text.replace('"parameters": 0', f'"parameters": {n}') for n in ("1e999", "0.0", "00", "+1", "0, \n0", "7")
    ]
    texts += [
        text.replace('"target": "cpu"', f'"target": {word}') for word in ('"a\tb"', '"\\q"', '"\\u0041"', '"cpu",')
    ]
    texts += [text.replace('"target"', '"target": "cpu", "target"'), text.replace('"seed": 0', '"seed": 0, "seed": 0')]
    return [f"{judge(text.encode())} {base64.b64encode(text.encode()).decode()}" for text in texts]


def places(value: object, inside: tuple = ()) -> list[tuple]:
    """Return the paths of all values; of a list only those in its first item."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else []
    found = [inside] if inside else []
    for key, part in items:
        if key not in ("tool_versions", "provenance"):
            found += places(part, (*inside, key))
    return found


def change(value: dict, where: tuple, new: object) -> None:
    for key in where[:-1]:
        value = value[key]
    if new == "(gone)":
        del value[where[-1]]
    else:
        value[where[-1]] = new


def judge(text: bytes) -> str:
    try:
        value = strict_json.parse(text, "manifest.json")
        manifest = strict_json.read(Manifest, value, "manifest.json")
    except UsageError:
        return "refused"
    expected = (PREPROCESSING, SIXTEEN_BIT, SCORE_RULE)
    found = (manifest.input.preprocessing, manifest.input.sixteen_bit, manifest.score_rule)
    return "accepted" if found == expected else "refused"


def test_core_under_junit(core_test_classes: Path, core_classes: Path, fixtures: Path, perturbed: Perturbed) -> None:
    properties = {"fixtures": fixtures}
    select = ["--exclude-classname", ".*LiteRt.*", "--scan-classpath", str(core_test_classes)]
    report = jdk.junit(core_test_classes, [core_classes, jdk.GSON, jdk.JNA], properties, *select)
    assert int(re.search(r"(\d+) tests successful", report)[1]) >= 60
    found = json.loads((fixtures / "bench.json").read_text())
    total, answers, wrong = parity_of(perturbed, open_bundle(fixtures / "bundle"), "fp32")
    assert list(found) == list(SCHEMA["properties"])
    assert list(found)[-1] == "done"
    assert found["stlm_edge"] == "9.9"
    jsonschema.validate(found, SCHEMA)
    row = found["rows"][0]
    assert row["parity"] == pytest.approx(vars(total), abs=1e-9)
    assert total.verdict_flips
    assert [golden["verdict"] for golden in row["golden"]] == [answer.verdict for answer in answers]
    for mine, theirs in zip(row["golden"], answers, strict=True):
        assert {k: v for k, v in mine.items() if k != "verdict"} == pytest.approx(
            {k: v for k, v in vars(theirs).items() if k != "verdict"}, abs=1e-9
        )
    assert wrong
    assert not row["passed"]
    assert row["latency_ms"] is None
    wrong_and_timed = json.loads((fixtures / "bench-wrong.json").read_text())
    jsonschema.validate(wrong_and_timed, SCHEMA)
    (row,) = wrong_and_timed["rows"]
    assert (row["passed"], row["timed_even_if_wrong"]) == (False, True)
    assert row["queries"] >= 30
    assert row["seconds"] >= 1
    assert row["quantiles_ms"][50] == row["latency_ms"]["p50"]
    assert row["energy_mj"] == pytest.approx(2000 * row["seconds"] / row["queries"], rel=0.5)
    assert row["peak_memory_mb"] == 123.4
    machine = wrong_and_timed["machine"]
    told = (machine["throttling_events"], machine["governor"], machine["power_mode"])
    assert told == (1, "schedutil", "battery saver")
    failed = json.loads((fixtures / "bench-failed.json").read_text())
    jsonschema.validate(failed, SCHEMA)
    assert failed["rows"][0]["failure"] == "the bundle is damaged"


def test_headers_are_judged_as_the_page_judges_them(
    core_test_classes: Path, core_classes: Path, fixtures: Path, tmp_path: Path
) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed (Debian: nodejs)")
    select = ["--select-method", "org.stlm_edge.core.SameAsPythonTest#headersOfImages"]
    jdk.junit(core_test_classes, [core_classes, jdk.GSON, jdk.JNA], {"fixtures": fixtures}, *select)
    found = (fixtures / "headers-java.txt").read_text("utf-8").splitlines()
    for path in page_files():
        shutil.copy(path, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    lines = (fixtures / "headers.txt").read_text("utf-8").splitlines()
    tasks = [{"task": "header", "file": line.split(" ")[0]} for line in lines]
    units = Path(__file__).parents[1] / "web/units.mjs"
    done = subprocess.run([node, units, tmp_path], input=json.dumps(tasks), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    assert len(found) == len(theirs) > 450
    for mine, answer in zip(found, theirs, strict=True):
        if header := answer.get("answer"):
            assert mine == f"{header['width']} {header['height']} {header['orientation']}"
        elif not mine.startswith("not an image"):  # which names other kinds, and the app
            assert mine == answer["problem"]
