"""Measuring in the web page: headless Chromium on this host opens it from a local server, and sends its bench.json."""

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
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stlm_edge.bench.devices.device import Job, Progress
from stlm_edge.bench.devices.remote import read_bench
from stlm_edge.bench.devices.ssh import parse_answer, printable
from stlm_edge.bench.machine import system
from stlm_edge.bench.result import Bench
from stlm_edge.errors import JobError

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ANSWER_LIMIT = 1 << 20  # bytes
_HEADERS = {  # those that the page's service worker adds, which a single visit does without
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; worker-src 'self'",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def measure_in_chromium(job: Job, progress: Progress) -> Bench:
    """Return the self-checks of the page, one row per bundle: fp16 on WebGPU, any other precision on WebAssembly.

    Raises:
        JobError: no Chromium, no runtime (see `npm.fetch`), a page that fails or sends no valid bench.json in time
    """
    from stlm_edge.export.web_site import add_page

    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise JobError(f"found none of {', '.join(_BROWSERS)}; install one of them")
    before, plan = system.moment(), job.plan
    ends = time.monotonic() + plan.time_limit_s
    benches = []
    for bundle in job.bundles:
        progress(f"{bundle.folder.name} in {Path(browser).name}")
        with tempfile.TemporaryDirectory(prefix="stlm-web-") as name:
            site = Path(name) / "site"
            shutil.copytree(bundle.folder, site / "bundle")
            add_page(site, [site / "bundle"])
            backend = "webgpu" if bundle.manifest.precision == "fp16" else "wasm"
            query = f"bench&check={plan.queries},{plan.seconds:g}&threads={job.threads}&backend={backend}"
            query += "&even-if-wrong" if plan.even_if_wrong else ""
            with _serving(site) as (address, answers), _browsing(browser, f"{address}?{query}", Path(name)) as process:
                benches.append(read_bench(json.dumps(_wait_for(answers, process, ends, progress)), rows=1))
    page = benches[0].machine  # which knows nothing of the machine below its browser
    machine = replace(system.describe((), before), python=page.python, packages=page.packages)
    return replace(benches[0], machine=machine, rows=tuple(bench.rows[0] for bench in benches))


class _Handler(SimpleHTTPRequestHandler):
    """Serves one folder below a secret path; takes an answer by PUT."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".js": "text/javascript", ".wasm": "application/wasm"}

    def __init__(self, token: str, answers: "queue.Queue[bytes]", *arguments: Any, **options: Any) -> None:
        self._token, self._answers = token, answers
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        if self._has_token():
            super().do_GET()

    def do_PUT(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not self._has_token() or not length.isdecimal() or int(length) > _ANSWER_LIMIT:
            self.send_error(400)
            return
        self._answers.put(self.rfile.read(int(length)))
        self.send_response(204)
        self.end_headers()

    def _has_token(self) -> bool:
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
        """Log nothing."""


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[tuple[str, "queue.Queue[bytes]"]]:
    """Serve a folder on loopback; yield its address, and the answers that were sent to it."""
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
    command += [f"--disable-{name}" for name in ("extensions", "background-networking", "component-update", "sync")]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--no-sandbox")  # without it Chromium refuses to run as root
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen([*command, url], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it started
        process.wait()


def _wait_for(
    answers: "queue.Queue[bytes]", process: "subprocess.Popen[bytes]", ends: float, progress: Progress
) -> Any:
    """Return what the page sends as `bench`. Raises JobError for a problem, a browser that ended, the time limit."""
    while time.monotonic() < ends:
        with contextlib.suppress(queue.Empty):
            answer = parse_answer(answers.get(timeout=1))
            if isinstance(answer.get("problem"), str):
                raise JobError(printable(answer["problem"]))
            return answer.get("bench")
        progress("")  # raises after an interruption
        if process.poll() is not None:
            raise JobError(f"Chromium ended with exit code {process.returncode} before the page sent its result")
    raise JobError("the page sent no result within the time limit")
