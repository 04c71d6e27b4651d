"""The web page around bundles: a static folder for any server, which loads nothing from other servers.

index.html, *.js, style.css   the page, copied from stlm_edge/export/web
runtime/                      files of onnxruntime-web
int8/, fp16/                  the bundles
site.json, version.js         a list of both, and a version that changes with any of them
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import stlm_edge
from stlm_edge.bundle.manifest import MANIFEST, read_manifest
from stlm_edge.errors import JobError, UsageError
from stlm_edge.export import targets
from stlm_edge.export.npm import Package, fetch, unpack
from stlm_edge.files import replacing, sha256_of

RUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
)
_BINARIES = {"wasm": "ort-wasm-simd-threaded.wasm", "webgpu": "ort-wasm-simd-threaded.asyncify.wasm"}
_SCRIPTS = (
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs"),
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs"),
)  # written as .js: not every server knows .mjs, and browsers refuse modules that are not served as JavaScript
_PAGE = Path(__file__).parent / "web"
_SCHEMA = Path(__file__).parents[1] / "schemas" / "manifest-1.schema.json"
_SITE = "site.json"


def check_site(out: Path, force: bool) -> None:
    """Check before the export that `add_page` will be able to write the page.

    Raises UsageError where `out` exists and may not be replaced, and JobError where the runtime can't be downloaded.
    """
    if out.exists():
        if not out.is_dir():
            raise UsageError(f"{out}: a file; expected a folder for the web page")
        names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        if names and not force:
            raise UsageError(f"{out}: exists; choose another folder or give --force to replace it")
        own = {path.name for path in page_files()} | {"runtime", _SITE, "version.js", "manifest.schema.json"}
        own |= {precision for row in targets.TARGETS if row.name == "web" for precision in row.precisions}
        if foreign := names - own:
            raise UsageError(f"{out}: not a site of this page, it holds {min(foreign)}; choose another folder")
    fetch(RUNTIME)


def add_page(out: Path, bundles: Sequence[Path]) -> None:
    """Write the page and the runtime around the bundles, which are in `out`; index.html comes last. Raises JobError."""
    manifests = {bundle.name: read_manifest(bundle / MANIFEST) for bundle in bundles}
    try:
        runtime = out / "runtime"
        runtime.mkdir(parents=True, exist_ok=True)
        unpack(RUNTIME, [f"dist/{name}" for name in (*_BINARIES.values(), *_SCRIPTS)], runtime)
        for name in _SCRIPTS:
            (runtime / name).replace(runtime / name.replace(".mjs", ".js"))
        shutil.copyfile(_SCHEMA, out / "manifest.schema.json")
        site = {
            "stlm_edge": stlm_edge.__version__,
            "runtime": {"version": RUNTIME.version}
            | {
                backend: {
                    "path": f"runtime/{name}",
                    "bytes": (runtime / name).stat().st_size,
                    "sha256": sha256_of(runtime / name),
                }
                for backend, name in _BINARIES.items()
            },
            "bundles": [
                {"name": f"{manifest.target}-{manifest.precision}", "folder": name, "precision": manifest.precision}
                for name, manifest in manifests.items()
            ],
        }
        (out / _SITE).write_text(json.dumps(site, indent=2) + "\n", "utf-8")
        shell = [*sorted(path.name for path in page_files()), _SITE, "manifest.schema.json"]
        for path in page_files():
            if path.name != "index.html":
                shutil.copyfile(path, out / path.name)
        digest = hashlib.sha256(RUNTIME.sha512.encode())
        for path in [_PAGE / "index.html", *(out / name for name in shell if name != "index.html")]:
            digest.update(path.read_bytes())
        for bundle in bundles:
            digest.update(sha256_of(bundle / MANIFEST).encode())
        version = f'const VERSION = "{digest.hexdigest()[:16]}";\nconst SHELL = {json.dumps(["./", *shell])};\n'
        (out / "version.js").write_text(version, "utf-8")
        with replacing(out / "index.html") as temporary:
            shutil.copyfile(_PAGE / "index.html", temporary)
    except OSError as error:
        raise JobError(f"{out}: cannot be written ({error.strerror})") from None


def page_files() -> list[Path]:
    """Return the files of the page itself."""
    return [path for path in sorted(_PAGE.iterdir()) if path.suffix in (".html", ".css", ".js", ".svg")]
