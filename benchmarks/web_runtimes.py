"""Compare the two runtimes that a web page could have, onnxruntime-web and @litertjs/core, on one model in Chromium.

    python benchmarks/web_runtimes.py --pair web/int8 android-int8 --out benchmarks/results/web_runtimes.json

Each pair is a bundle of target web (or cpu) and one of target android from the same checkpoint. Both run on WebAssembly
in one page, in turns, on one thread and on two; a ratio is the median of the ratios within each turn. Parity is of both
on the golden images of the first. Sizes are of what a browser has to load: the runtime, as it is and gzipped, and the
model.
Needs Chromium and npm.
"""

import argparse
import datetime
import gzip
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import stlm_edge
from stlm_edge.bench.percentiles import percentile
from stlm_edge.export.npm import Package, unpack
from stlm_edge.export.web_site import RUNTIME, add_page

LITERT = Package(
    "@litertjs/core",
    "2.5.3",
    "PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
)
WASM_UTILS = Package(
    "@litertjs/wasm-utils",
    "2.5.3",
    "4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
)
PAGE = """<!doctype html><title>web_runtimes</title><script type="importmap">
{"imports": {"@litertjs/core": "./litert/index.js", "@litertjs/wasm-utils": "./wasm-utils/index.js"}}
</script><script type="module" src="web_runtimes.js"></script>"""
LOADED = {
    "onnxruntime-web": [
        f"runtime/{name}" for name in ("ort.wasm.min.js", "ort-wasm-simd-threaded.js", "ort-wasm-simd-threaded.wasm")
    ],
    "@litertjs/core": [
        *("litert/index.js", "wasm-utils/index.js"),
        *(f"litert/litert_wasm_threaded_internal.{end}" for end in ("js", "wasm")),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs=2, action="append", required=True, metavar=("ONNX", "TFLITE"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--queries", type=int, default=8, help="of each runtime in a round")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    rows = []
    for onnx, tflite in options.pair:
        with tempfile.TemporaryDirectory(prefix="web-runtimes-") as name:
            site = Path(name) / "site"
            manifest = build(site, Path(onnx), Path(tflite))
            for threads in (1, 2):
                plan = {"threads": threads, "rounds": options.rounds, "queries": options.queries}
                (site / "plan.json").write_text(json.dumps(plan))
                row = summary(visit(site, Path(name) / f"profile-{threads}"), threads, site)
                rows.append({"precision": manifest.precision, "size": manifest.input.size, **row})
                print(json.dumps(rows[-1]), flush=True)
    found = {
        "command": f"python benchmarks/web_runtimes.py {' '.join(sys.argv[1:])}",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "versions": {package.name: package.version for package in (RUNTIME, LITERT)},
        "rows": rows,
    }
    Path(options.out).write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def build(site: Path, onnx: Path, tflite: Path) -> Any:
    """A page with both runtimes and both models in `site`; returns the first bundle's manifest."""
    manifest = stlm_edge.open(onnx).manifest
    other = stlm_edge.open(tflite).manifest
    if (manifest.input.size, manifest.precision) != (other.input.size, other.precision):
        raise SystemExit(f"{onnx} and {tflite}: expected one size and precision")
    shutil.copytree(onnx, site / "onnx")
    add_page(site, [site / "onnx"])
    shutil.copyfile(tflite / other.artifact, site / "model.tflite")
    for folder in ("litert", "wasm-utils"):
        (site / folder).mkdir()
    names = [f"litert_wasm{kind}_internal.{end}" for kind in ("", "_threaded") for end in ("js", "wasm")]
    unpack(LITERT, ["dist/index.js", *(f"wasm/{name}" for name in names)], site / "litert")
    unpack(WASM_UTILS, ["dist/index.js"], site / "wasm-utils")
    shutil.copyfile(Path(__file__).with_suffix(".js"), site / "web_runtimes.js")
    (site / "index.html").write_text(PAGE)
    return manifest


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, answers: "queue.Queue[bytes]", *arguments: Any, **options: Any) -> None:
        self.answers = answers
        super().__init__(*arguments, **options)

    def do_PUT(self) -> None:
        self.answers.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def visit(site: Path, profile: Path) -> dict[str, Any]:
    """Return the page's result in a separate headless Chromium."""
    answers: queue.Queue[bytes] = queue.Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, answers, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = ["chromium", "--headless=new", f"--user-data-dir={profile}", "--no-first-run", "--no-sandbox"]
    command.append(f"http://127.0.0.1:{server.server_port}/")
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        answer = json.loads(answers.get(timeout=900))
    finally:
        browser.terminate()
        browser.wait()
        server.shutdown()
        server.server_close()
    if "problem" in answer:
        raise SystemExit(answer["problem"])
    return dict(answer)


def summary(answer: dict[str, Any], threads: int, site: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"threads": threads if answer["isolated"] else 1, "agent": answer["agent"], "runtimes": {}}
    for name, measured in answer["runtimes"].items():
        every = [query for each in measured["rounds_ms"] for query in each]
        files = [site / path for path in LOADED[name]]
        model = site / ("model.tflite" if name.startswith("@") else "onnx/model.onnx")
        found["runtimes"][name] = {
            "p50_ms": percentile(every, 0.5),
            "p90_ms": percentile(every, 0.9),
            "best_ms": min(every),
            "load_ms": measured["load_ms"],
            "runtime_mb": sum(file.stat().st_size for file in files) / 1e6,
            "runtime_gzipped_mb": sum(len(gzip.compress(file.read_bytes())) for file in files) / 1e6,
            "model_mb": model.stat().st_size / 1e6,
            "parity": measured["parity"],
        }
    ort, litert = (answer["runtimes"][name]["rounds_ms"] for name in LOADED)
    found["litert_of_onnxruntime"] = median(median(b) / median(a) for a, b in zip(ort, litert, strict=True))
    return found


if __name__ == "__main__":
    main()
