"""Weights are downloaded once, from a server that may drop connections, ignore ranges or send another file."""

import contextlib
import hashlib
import http.server
import multiprocessing
import resource
import socket
import threading

import pytest

from stlm_edge.errors import JobError
from stlm_edge.teachers.weights import Weights, fetched

CONTENT = bytes(range(256)) * 20_000
HEAD = 2_000_000


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Server(http.server.ThreadingHTTPServer):
    """A server of CONTENT that records the requested ranges."""

    def __init__(self, content=CONTENT, *, knows_ranges=True, drops_after=None, status=200, announces=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.knows_ranges, self.drops_after = content, knows_ranges, drops_after
        self.status, self.announces = status, announces
        self.ranges = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, requested = self.server, self.headers["Range"]
        server.ranges.append(requested)
        begin = int(requested.removeprefix("bytes=").rstrip("-")) if requested and server.knows_ranges else 0
        if server.status != 200 or begin >= len(server.content):
            return self.send_error(server.status if server.status != 200 else 416)
        body = server.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        if server.announces:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[: server.drops_after])

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(*args, **kwargs):
    with Server(*args, **kwargs) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def published(server, content=CONTENT):
    port = server if isinstance(server, int) else server.server_address[1]
    address = f"http://127.0.0.1:{port}/weights/sam.pth"
    return Weights("vit_b", address, len(content), hashlib.sha256(content).hexdigest())


def line_of(weights, folder):
    with pytest.raises(JobError) as caught:
        fetched(weights, folder)
    line = str(caught.value)
    assert "\n" not in line
    assert not (folder / "sam.pth").exists()
    for part in (weights.address, str(folder / "sam.pth"), "--teacher-weights"):
        assert part in line
    return line


def test_download_happens_once_with_a_progress_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes standard error for a terminal
    with serving() as server:
        path = fetched(published(server), tmp_path / "cache")
        assert path == tmp_path / "cache" / "sam.pth"
        assert path.read_bytes() == CONTENT
        assert fetched(published(server), tmp_path / "cache") == path
    assert server.ranges == [None]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "sam.pth" in shown.err


def test_interrupted_download_continues(tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(CONTENT[:HEAD])
    with serving() as server:
        assert fetched(published(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={HEAD}-"]
    assert not (tmp_path / "sam.pth.part").exists()


def test_server_without_ranges_sends_all_again(tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(b"x" * HEAD)
    with serving(knows_ranges=False) as server:
        assert fetched(published(server), tmp_path).read_bytes() == CONTENT


def test_dropped_connection_is_retried(tmp_path):
    with serving(drops_after=HEAD) as server:
        assert fetched(published(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HEAD}-", f"bytes={2 * HEAD}-"]


def test_server_that_stops_at_the_same_byte_is_given_up(tmp_path):
    with serving(drops_after=HEAD, knows_ranges=False) as server:
        assert f"ends after {HEAD} of {len(CONTENT)} bytes" in line_of(published(server), tmp_path)
    assert (tmp_path / "sam.pth.part").stat().st_size == HEAD


def test_other_file_is_refused_and_removed(tmp_path):
    with serving(CONTENT[::-1]) as server:
        line = line_of(published(server), tmp_path)
    assert hashlib.sha256(CONTENT[::-1]).hexdigest() in line
    assert hashlib.sha256(CONTENT).hexdigest() in line
    assert not (tmp_path / "sam.pth.part").exists()


@pytest.mark.parametrize("content", [b"<html>log in</html>", CONTENT + b"more"], ids=["shorter", "longer"])
def test_other_size_is_refused_before_download(tmp_path, content):
    (tmp_path / "sam.pth.part").write_bytes(CONTENT[:10])
    with serving(content) as server:
        assert f"{len(content)} bytes, expected {len(CONTENT)}" in line_of(published(server), tmp_path)
    assert (tmp_path / "sam.pth.part").read_bytes() == CONTENT[:10]


def test_no_more_than_the_published_size_is_written(tmp_path):
    with serving(CONTENT + CONTENT, announces=False) as server:
        assert fetched(published(server), tmp_path).stat().st_size == len(CONTENT)


def test_missing_file_is_reported_with_status(tmp_path):
    with serving(status=404) as server:
        assert "HTTP 404 Not Found" in line_of(published(server), tmp_path)


def test_partial_file_that_the_server_cannot_continue_is_removed(tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(b"x" * HEAD)
    with serving(CONTENT[:HEAD]) as server:
        assert "HTTP 416" in line_of(published(server), tmp_path)
    assert not (tmp_path / "sam.pth.part").exists()


def test_offline_error_names_address_and_place(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "not reachable" in line_of(published(unused.getsockname()[1]), tmp_path)


def test_several_processes_download_once(tmp_path):
    with serving() as server:
        processes = [multiprocessing.Process(target=fetched, args=(published(server), tmp_path)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0, 0]
    assert server.ranges == [None]
    assert (tmp_path / "sam.pth").read_bytes() == CONTENT


def test_full_disk_is_reported(tmp_path):
    """A limit on the size of files stands for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving() as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (HEAD, before[1]))
        try:
            assert "cannot be saved" in line_of(published(server), tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_default_is_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with serving() as server:
        assert fetched(published(server)) == tmp_path / "stlm-edge" / "sam.pth"
