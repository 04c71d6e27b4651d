"""`--device web`: the page in headless Chromium gives a bench.json like any other device, or one line of why not."""

import json
import os
import shutil
import urllib.error
import urllib.request
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from stlm_edge import strict_json
from stlm_edge.bench.devices import web
from stlm_edge.bench.devices.device import Job
from stlm_edge.bench.measure import Plan
from stlm_edge.bench.result import Bench
from stlm_edge.bundle import open_bundle
from stlm_edge.commands.bench import main
from stlm_edge.errors import JobError
from stlm_edge.export import npm, web_site
from stlm_edge.export.web_site import RUNTIME


@pytest.fixture(scope="module")
def browser() -> str:
    browser = next(filter(None, map(shutil.which, web._BROWSERS)), None)
    if browser is None:
        pytest.skip("Chromium is not installed (Debian: chromium)")
    try:
        npm.fetch(RUNTIME)
    except JobError as error:
        pytest.skip(f"{RUNTIME.name} cannot be downloaded: {error}")
    return browser


def measure(bundle: Path, time_limit_s: float) -> Bench:
    return web.measure_in_chromium(Job((open_bundle(bundle),), Plan(8, 0, time_limit_s=time_limit_s)), lambda _: None)


def test_row_of_the_page_is_like_those_of_other_devices(
    browser: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, read = [], web.read_bench

    def record(text: str, rows: int) -> Bench:
        sent.append(json.loads(text))
        return read(text, rows)

    monkeypatch.setattr(web, "read_bench", record)
    given = ["--bundle", str(tiny_bundle), "--device", "web", "--queries", "20", "--seconds", "0", "--threads", "2"]
    main([*given, "--out", str(tmp_path)])
    schema = resources.files("stlm_edge").joinpath("schemas/bench-1.schema.json").read_text("utf-8")
    (as_sent,) = sent
    jsonschema.validate(as_sent, json.loads(schema))
    bench = strict_json.read(Bench, json.loads((tmp_path / "bench.json").read_text()), "bench.json")
    (row,) = bench.rows
    threads = min(2, len(os.sched_getaffinity(0)))  # a browser starts no more than there are cores
    assert (row.device, row.runtime, row.threads) == ("web", "onnxruntime-web/wasm", threads)
    assert row.bundle == str(tiny_bundle)
    assert row.passed
    assert row.parity is not None
    assert row.parity.max_abs_diff is not None
    assert row.parity.max_abs_diff < 1e-4
    assert row.queries >= 20
    (answer,) = bench.devices
    assert answer.machine is not None
    assert "JavaScript in" in answer.machine.python
    assert answer.machine.cores == bench.machine.cores


@pytest.mark.slow
def test_fp16_without_webgpu_fails_rather_than_falls_back(browser: str, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "fp16")
    manifest = tmp_path / "fp16" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"precision": "fp32"', '"precision": "fp16"'))
    with pytest.raises(JobError, match="WebGPU"):
        measure(tmp_path / "fp16", 120)


def test_browser_that_ends_early_or_is_missing_is_reported(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_site, "add_page", lambda *_: None)
    (tmp_path / "chromium").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "chromium").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(JobError, match="Chromium ended with exit code 3"):
        measure(tiny_bundle, 60)
    (tmp_path / "chromium").write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(JobError, match="time limit"):
        measure(tiny_bundle, 1)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(JobError, match="found none of chromium"):
        measure(tiny_bundle, 60)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"problem": "bad\\u001b[2Jthing"}', "bad [2Jthing"),
        (b'{"bench": {"format_version": 1}}', "bench.json"),
        (b"{}", "bench.json"),
    ],
)
def test_hostile_result_is_refused_in_one_line(
    body: bytes, words: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in the browser's place sends it."""
    monkeypatch.setattr(web_site, "add_page", lambda *_: None)
    (tmp_path / "body").write_bytes(body)
    (tmp_path / "chromium").write_text(
        "#!/bin/sh\nfor url; do :; done\nput=${url%%\\?*}answer\n"
        f'exec {shutil.which("python3")} -c "import sys, urllib.request as u; '
        f"u.urlopen(u.Request(sys.argv[1], open('{tmp_path / 'body'}', 'rb').read(), method='PUT'))\" $put\n"
    )
    (tmp_path / "chromium").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(JobError) as caught:
        measure(tiny_bundle, 60)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_server_answers_only_requests_with_its_token(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("page")
    with web._serving(tmp_path) as (address, answers):
        assert urllib.request.urlopen(f"{address}index.html").read() == b"page"
        root = address.rsplit("/", 2)[0]
        for url, data in ((f"{root}/index.html", None), (f"{root}/other/answer", b"{}"), (f"{address}../../etc", None)):
            method = "PUT" if data else "GET"
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(urllib.request.Request(url, data, method=method))
            assert caught.value.code in (400, 404)
        large = urllib.request.Request(f"{address}answer", bytes((1 << 20) + 1), method="PUT")
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(large)
        assert answers.empty()
