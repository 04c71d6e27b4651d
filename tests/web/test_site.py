"""The folder that an export for the web writes."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from stlm_edge.commands import export
from stlm_edge.errors import JobError, UsageError
from stlm_edge.export import npm
from stlm_edge.export.pipeline import Exported
from stlm_edge.export.web_site import RUNTIME, add_page, check_site, page_files


@pytest.fixture(scope="module")
def site(runtime: None, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("web") / "site"
    shutil.copytree(tiny_bundle, site / "int8")
    add_page(site, [site / "int8"])
    return site


def test_all_files_of_page_exist(site: Path) -> None:
    page = (site / "index.html").read_text()
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (site / name).is_file(), name
    for path in site.glob("*.js"):
        for name in re.findall(r'(?:from|import\() ?"\./([^"]+)"', path.read_text()):
            assert (site / name).is_file(), f"{path.name}: {name}"
    version = (site / "version.js").read_text()
    for name in json.loads(re.search(r"SHELL = (.*);", version)[1]):
        assert (site / name).exists(), name
    for name in re.findall(r'"(ort[a-z.\-]+)"', (site / "runtime.js").read_text()):
        assert (site / "runtime" / name).is_file(), name


def test_page_names_no_other_server() -> None:
    for path in page_files():
        addresses = set(re.findall(r"https?://[^\s\"'`]+", path.read_text()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name


def test_changed_bundle_changes_version(site: Path, tmp_path: Path) -> None:
    first = (site / "version.js").read_text()
    shutil.copytree(site, tmp_path / "site")
    add_page(tmp_path / "site", [tmp_path / "site" / "int8"])
    assert (tmp_path / "site" / "version.js").read_text() == first
    manifest = tmp_path / "site" / "int8" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    add_page(tmp_path / "site", [tmp_path / "site" / "int8"])
    assert (tmp_path / "site" / "version.js").read_text() != first


def test_foreign_folder_is_not_written_to(site: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"exists.*--force"):
        check_site(site, force=False)
    check_site(site, force=True)
    check_site(tmp_path / "new", force=False)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds notes.txt"):
        check_site(tmp_path, force=True)
    with pytest.raises(UsageError, match="a file; expected a folder"):
        check_site(tmp_path / "notes.txt", force=True)


def test_command_writes_page_around_all_bundles(
    runtime: None, exported_for_web: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def already_exported(target: str, precision: str | None, out: Path, **_: object) -> list[Exported]:
        shutil.copytree(exported_for_web["int8"].folder.parent, out)
        return [replace(done, folder=out / name) for name, done in exported_for_web.items()]

    monkeypatch.setattr("stlm_edge.export.pipeline.export_all", already_exported)
    arguments = ["--target", "web", "--out", str(tmp_path / "site")]
    export.main(arguments)
    assert f"{tmp_path / 'site'}: a page for any static server" in capsys.readouterr().out
    listed = json.loads((tmp_path / "site" / "site.json").read_text())["bundles"]
    assert [bundle["folder"] for bundle in listed] == ["fp16", "int8"]
    assert (tmp_path / "site" / "index.html").is_file()
    with pytest.raises(SystemExit) as caught:
        export.main(arguments)
    assert caught.value.code == 2
    assert "--force" in capsys.readouterr().err


def test_missing_npm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError, match=r"npm is not installed.*install Node.js.*`npm pack onnxruntime-web@"):
        check_site(tmp_path / "site", force=False)


def test_wrong_checksum_of_runtime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "stlm-edge" / "npm" / RUNTIME.file
    place.parent.mkdir(parents=True)
    place.write_bytes(b"another")
    with pytest.raises(JobError, match=r"wrong checksum for onnxruntime-web .*remove it"):
        npm.fetch(RUNTIME)


def test_runtime_files_are_those_of_package(site: Path) -> None:
    import tarfile

    with tarfile.open(npm.fetch(RUNTIME)) as archive:
        for path in (site / "runtime").iterdir():
            name = path.name.replace(".js", ".mjs")
            published = archive.extractfile(f"package/dist/{name}")
            assert published is not None
            assert hashlib.sha256(published.read()).digest() == hashlib.sha256(path.read_bytes()).digest()
