"""Node.js, Chromium and two npm packages for the tests of the web page."""

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stlm_edge.errors import JobError
from stlm_edge.export import npm
from stlm_edge.export.web_site import RUNTIME, page_files

HERE = Path(__file__).parent
PLAYWRIGHT = npm.Package(
    "playwright-core",
    "1.65.1",
    "hqPpz7blSMPxWVdoeE1yiBSzXsKiVOd2k+kjCvmUywD2GPO2Dd9HfcWnq9NN0GHbNZDFgZ9JfBFr+X5/BLo0qw==",
)
AXE = npm.Package(
    "axe-core", "4.14.1", "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)


@pytest.fixture(scope="session")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("Node.js is not installed (Debian: nodejs)")
    return found


@pytest.fixture(scope="session")
def in_node(node: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[dict]], list[dict]]:
    """Return a function that runs tasks of units.mjs, outside a browser."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "package.json").write_text('{"type": "module"}')
    for path in page_files():
        shutil.copy(path, folder)

    def ask(tasks: list[dict]) -> list[dict]:
        done = subprocess.run(
            [node, HERE / "units.mjs", folder], input=json.dumps(tasks), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout)
        unforeseen = [answer["unforeseen"] for answer in answers if "unforeseen" in answer]
        assert not unforeseen, unforeseen[0]
        return answers

    return ask


@pytest.fixture(scope="session")
def runtime() -> None:
    """Have onnxruntime-web in the cache, or skip the test."""
    fetched(RUNTIME)


def fetched(package: npm.Package) -> Path:
    try:
        return npm.fetch(package)
    except JobError as error:
        if "wrong checksum" in str(error):
            raise
        pytest.skip(f"{package.name} can't be downloaded: {error}")


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("Chromium is not installed (Debian: chromium)")
    return found


@pytest.fixture(scope="session")
def tools(node: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with playwright-core, which drives the browser, and axe-core, which checks accessibility."""
    tools = tmp_path_factory.mktemp("tools")
    (tools / "package.json").write_text("{}")
    for package in (PLAYWRIGHT, AXE):
        with tarfile.open(fetched(package)) as archive:
            archive.extractall(tools / package.name, filter="data")
        (tools / package.name / "package").rename(tools / "package")
        (tools / package.name).rmdir()
        (tools / "package").rename(tools / package.name)
    return tools


@pytest.fixture(scope="session")
def browse(node: str, chromium: str, runtime: None, tools: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that runs scenarios of browser.mjs and returns their observations."""

    def run(root: Path, scenarios: list[str], **given: Any) -> dict[str, Any]:
        shots = root / "screenshots"
        shots.mkdir(exist_ok=True)
        places = {"chromium": chromium, "tools": str(tools), "root": str(root), "shots": str(shots)}
        config = json.dumps({**places, "scenarios": scenarios, "images": [], **given})
        done = subprocess.run([node, HERE / "browser.mjs", config], capture_output=True, text=True, timeout=850)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        errors = {name: found["error"] for name, found in seen.items() if "error" in found}
        assert not errors, errors
        return seen

    return run
