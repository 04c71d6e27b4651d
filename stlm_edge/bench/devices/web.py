"""The web page as a device: headless Chromium opens it from a server on this machine and brings its bench.json back."""

import contextlib
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stlm_edge.bench.devices.remote import read_bench
from stlm_edge.bench.devices.ssh import printable
from stlm_edge.bench.machine import system
from stlm_edge.bench.measure import Plan
from stlm_edge.bench.result import Bench
from stlm_edge.bundle import Bundle
from stlm_edge.errors import JobError
from stlm_edge.export.web_site import add_page

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MOST_BYTES = 1 << 20  # of a page's answer
_HEADERS = {  # those that a service worker would add, which this short visit goes without
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; worker-src 'self'",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def measure_in_chromium(
    bundles: Sequence[Bundle], plan: Plan, threads: int, time_limit_s: float, progress: Callable[[str], None]
) -> Bench:
    """The page's self-check of each bundle, one row each, in one bench.json.

    fp16 runs on WebGPU or not at all, everything else on WebAssembly. Raises JobError: no Chromium, no runtime (see
    `npm.fetch`), a page that fails or gives no answer in time, an answer that isn't bench.json.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise JobError(f"found none of {', '.join(_BROWSERS)}; install one of them")
    before = system.moment()
    ends = time.monotonic() + time_limit_s
    found = []
    for bundle in bundles:
        progress(f"{bundle.folder.name} in {Path(browser).name}")
        with tempfile.TemporaryDirectory(prefix="stlm-web-") as name:
            site = Path(name) / "site"
            shutil.copytree(bundle.folder, site / "bundle")
            add_page(site, [site / "bundle"])
            backend = "webgpu" if bundle.manifest.precision == "fp16" else "wasm"
            asked = f"bench&check={plan.queries},{plan.seconds:g}&threads={threads}&backend={backend}"
            asked += "&even-if-wrong" if plan.even_if_wrong else ""
            with _serving(site) as (address, answers), _browsing(browser, f"{address}?{asked}", Path(name)) as process:
                found.append(read_bench(json.dumps(_answer(answers, process, ends, progress))))
    if any(len(bench.rows) != 1 for bench in found):
        raise JobError("its bench.json: not one row")
    page = found[0].machine  # what the page can't see of its machine is seen from here
    here = replace(system.describe((), before), python=page.python, packages=page.packages)
    return replace(found[0], machine=here, rows=tuple(bench.rows[0] for bench in found))


class _Handler(SimpleHTTPRequestHandler):
    """Serves one folder under a path that nobody can guess; takes one answer by PUT."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, token: str, answers: "queue.Queue[bytes]", *arguments: Any, **options: Any) -> None:
        self._token, self._answers = token, answers
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        if self._is_ours():
            super().do_GET()

    def do_PUT(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not self._is_ours() or not length.isdecimal() or int(length) > _MOST_BYTES:
            self.send_error(400)
            return
        self._answers.put(self.rfile.read(int(length)))
        self.send_response(204)
        self.end_headers()

    def _is_ours(self) -> bool:
        head, _, rest = self.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(head, self._token):
            self.send_error(404)
            return False
        self.path = f"/{rest}"
        return True

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[tuple[str, "queue.Queue[bytes]"]]:
    answers: queue.Queue[bytes] = queue.Queue()
    token = secrets.token_hex(16)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, token, answers, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{token}/", answers
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def _browsing(browser: str, url: str, temporary: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [browser, "--headless=new", f"--user-data-dir={temporary / 'profile'}", "--no-first-run"]
    command += [
        "--disable-extensions",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--no-sandbox")  # Chromium refuses to start as root with it
    process = subprocess.Popen(
        [*command, url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # itself and the processes it started
        process.wait()


def _answer(
    answers: "queue.Queue[bytes]", process: "subprocess.Popen[bytes]", ends: float, progress: Callable[[str], None]
) -> Any:
    while time.monotonic() < ends:
        with contextlib.suppress(queue.Empty):
            answer = _parsed(answers.get(timeout=1))
            if isinstance(answer.get("problem"), str):
                raise JobError(printable(answer["problem"]))
            return answer.get("bench")
        progress("")  # where an interruption is heard of
        if process.poll() is not None:
            raise JobError(f"Chromium ended with exit code {process.returncode} before the page had answered")
    raise JobError("the page gave no answer within the time limit")


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise JobError("the page's answer: not an object of JSON")
    return answer
