"""Fixtures shared by the tests: bundles and checkpoints of small networks, and images for them."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny import tiny_image, write_tiny_bundle

if TYPE_CHECKING:
    from damage import ConvertBy

    from stlm_edge.export.pipeline import Exported

pytest.register_assert_rewrite("promises")

# Started in the background by a shell, the tests ignore Ctrl-C, and so would the commands that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Fixtures that are slow and shared by many files: tests that use one run in one process.
SHARED = ("exported_for_android", "coreml_packages", "even_onnx", "exported")
MADE_FROM = {
    "exported_via_openvino": "exported",
    "exported_for_ios": "coreml_packages",
    "exported_for_jetson": "even_onnx",
    "exported_for_web": "even_onnx",
}


@pytest.hookimpl(tryfirst=True)  # before xdist, which reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests that stay in one process: those of a shared fixture or of a file, unless they name a group."""
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        group = item.nodeid.partition("::")[0]
        row = item.callspec.params.get("row") if hasattr(item, "callspec") else None  # of promises.ROWS
        exported = getattr(row, "exported", None)
        used = {*getattr(item, "fixturenames", ()), MADE_FROM.get(exported, exported)}
        group = next((fixture for fixture in SHARED if fixture in used), group)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def small_quantization_set() -> Iterator[None]:
    """Let exports measure on 24 images instead of 100, which is enough for a small network."""
    from stlm_edge.export import quantization_set

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization_set, "IMAGES", 24)
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of TINY_SIZE: copy it, but don't change it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with good/ (24 images) and spot/ (8) for the tiny bundle."""
    root = tmp_path_factory.mktemp("images")
    for kind, seeds in (("good", range(200, 224)), ("spot", range(301, 309))):
        (root / kind).mkdir()
        for seed in seeds:
            tiny_image(seed, defect=kind == "spot").save(root / kind / f"{seed}.png")
    return root


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of temporary files, which must be empty after an export, also after a failed one."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a run of a small network (S=64)."""
    from small_run import write_small_run

    run = tmp_path_factory.mktemp("runs") / "small"
    run.mkdir()
    return write_small_run(run)


@pytest.fixture(scope="session")
def exported(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """Export the small checkpoint for cpu, by precision: copy the bundles, but don't change them."""
    from stlm_edge.export.pipeline import export

    folder = tmp_path_factory.mktemp("exported")
    return {
        precision: export("cpu", checkpoint=small_checkpoint, precision=precision, out=folder / precision)
        for precision in ("int8", "fp32")
    }


@pytest.fixture
def convert_by(exported: dict[str, Exported], monkeypatch: pytest.MonkeyPatch) -> ConvertBy:
    """Return a function that makes conversions to ONNX return the fp32 file of `exported`, damaged."""
    from damage import convert_to

    return lambda damage: convert_to(exported["fp32"].folder / "model.onnx", monkeypatch, damage)


@pytest.fixture(scope="session")
def exported_via_openvino(
    exported: dict[str, Exported], small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """Export the small checkpoint via openvino, from the ONNX file of `exported`."""
    from damage import convert_to

    from stlm_edge.export.pipeline import export

    folder = tmp_path_factory.mktemp("exported-via-openvino")
    with pytest.MonkeyPatch.context() as patch:
        convert_to(exported["fp32"].folder / "model.onnx", patch)
        return {
            precision: export(
                "cpu", via="openvino", checkpoint=small_checkpoint, precision=precision, out=folder / precision
            )
            for precision in ("int8", "fp16", "fp32")
        }


@pytest.fixture(scope="session")
def exported_for_android(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """Export the small checkpoint for android; the slow conversion to fp32 is done once."""
    from stlm_edge.converters import tflite
    from stlm_edge.export.pipeline import export

    folder = tmp_path_factory.mktemp("exported-for-android")
    convert = tflite.to_tflite

    def once(model: object, path: Path, *arguments: object) -> None:
        if not (folder / "model.tflite").exists():
            convert(model, folder / "model.tflite", *arguments)
        shutil.copyfile(folder / "model.tflite", path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tflite, "to_tflite", once)
        return {
            precision: export("android", checkpoint=small_checkpoint, precision=precision, out=folder / precision)
            for precision in ("int8", "fp16", "fp32")
        }


@pytest.fixture(scope="session")
def even_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a network whose map values are near each other, which fp16 keeps."""
    from small_run import write_small_run

    run = tmp_path_factory.mktemp("runs") / "even"
    run.mkdir()
    return write_small_run(run, even=True)


@pytest.fixture(scope="session")
def told_apart(even_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return labelled images that `even_checkpoint` separates: good/ has its lowest scores, high/ its highest."""
    from stlm_edge.images import load
    from stlm_edge.runtimes.torch import Torch

    trained, folder = Torch(even_checkpoint), tmp_path_factory.mktemp("told-apart")
    paths = sorted((even_checkpoint.parent / "golden").rglob("*.png"))
    paths.sort(key=lambda path: trained.run(load(path, trained.size))[1])
    for label, chosen in (("good", paths[:6]), ("high", paths[-6:])):
        (folder / label).mkdir()
        for number, path in enumerate(chosen):
            shutil.copy(path, folder / label / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def coreml_packages(even_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert `even_checkpoint` to fp32.mlpackage, fp16.mlpackage and int8.mlpackage: copy, but don't change them."""
    from stlm_edge.converters import coreml, quiet
    from stlm_edge.model import checkpoint

    folder = tmp_path_factory.mktemp("coreml")
    opened = checkpoint.load(even_checkpoint)
    with quiet():
        for precision in ("fp32", "fp16"):
            package = coreml.converted(opened.model, precision)
            coreml.save(package, folder / f"{precision}.mlpackage", opened.decision_threshold, opened.model.config.size)
        package = coreml.compressed(package, "int8")
        coreml.save(package, folder / "int8.mlpackage", opened.decision_threshold, opened.model.config.size)
    return folder


@pytest.fixture(scope="session")
def exported_for_ios(
    coreml_packages: Path, even_checkpoint: Path, told_apart: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """Export `even_checkpoint` for ios from `coreml_packages`."""
    from stlm_edge.converters import coreml
    from stlm_edge.export.pipeline import export

    def copied(model: object, path: Path, decision_threshold: object, precision: str, *_: object) -> None:
        shutil.copytree(coreml_packages / f"{precision}.mlpackage", path)

    folder = tmp_path_factory.mktemp("exported-for-ios")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreml, "to_coreml", copied)
        return {
            precision: export(
                "ios", checkpoint=even_checkpoint, precision=precision, data=told_apart, out=folder / precision
            )
            for precision in ("fp16", "int8")
        }


@pytest.fixture(scope="session")
def even_onnx(even_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert `even_checkpoint` to ONNX in fp32."""
    from stlm_edge.converters.onnx import to_onnx
    from stlm_edge.model import checkpoint

    trained = checkpoint.load(even_checkpoint)
    path = tmp_path_factory.mktemp("even") / "model.onnx"
    to_onnx(trained.model, path, trained.decision_threshold)
    return path


@pytest.fixture(scope="session")
def exported_for_jetson(
    even_checkpoint: Path, even_onnx: Path, told_apart: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """Export `even_checkpoint` for jetson from `even_onnx`."""
    from damage import convert_to

    from stlm_edge.export.pipeline import export

    folder = tmp_path_factory.mktemp("exported-for-jetson")
    with pytest.MonkeyPatch.context() as patch:
        convert_to(even_onnx, patch)
        return {
            precision: export(
                "jetson", checkpoint=even_checkpoint, precision=precision, data=told_apart, out=folder / precision
            )
            for precision in ("fp16", "int8", "fp32")
        }


@pytest.fixture(scope="session")
def exported_for_web(
    even_checkpoint: Path, even_onnx: Path, told_apart: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """Export `even_checkpoint` for web from `even_onnx`, in all precisions."""
    from damage import convert_to

    from stlm_edge.export.pipeline import export_all

    folder = tmp_path_factory.mktemp("exported-for-web") / "bundles"
    with pytest.MonkeyPatch.context() as patch:
        convert_to(even_onnx, patch)
        done = export_all("web", checkpoint=even_checkpoint, data=told_apart, out=folder)
    return {bundle.manifest.precision: bundle for bundle in done}


@pytest.fixture(scope="session")
def site_images(
    exported_for_android: dict[str, Exported], tiny_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the ten images with the lowest scores: a network with random weights is calibrated on them."""
    import stlm_edge

    bundle, folder = stlm_edge.open(exported_for_android["int8"].folder), tmp_path_factory.mktemp("site")
    for path in sorted((tiny_images / "good").iterdir(), key=lambda path: bundle.predict(path).score)[:10]:
        shutil.copy(path, folder)
    return folder
