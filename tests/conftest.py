"""Fixtures shared by the tests: a small bundle that a real onnxruntime runs, and images that suit it."""

from __future__ import annotations

import shutil
import signal
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


# What takes long to make and what many files share: tests that use it run in the process that has made it.
SHARED = ("exported_for_android", "coreml_packages", "even_onnx", "exported")


@pytest.hookimpl(tryfirst=True)  # before xdist, which reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests stay in one process where there are several: those of a file, of an export, of all devices."""
    for item in items:
        group = item.nodeid.partition("::")[0]
        if group.startswith("tests/bench/"):
            group = "devices"  # they take turns at the one adb and look at the clock
        else:
            used = getattr(item, "fixturenames", ())
            group = next((fixture for fixture in SHARED if fixture in used), group)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of TINY_SIZE, made once: read it, copy it, but don't change it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good/ (24 images) and spot/ (8) that suit the tiny bundle."""
    root = tmp_path_factory.mktemp("images")
    for kind, seeds in (("good", range(200, 224)), ("spot", range(301, 309))):
        (root / kind).mkdir()
        for seed in seeds:
            tiny_image(seed, defect=kind == "spot").save(root / kind / f"{seed}.png")
    return root


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go: a folder that must be empty after an export, whatever its end."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run folder of a small network (S=64), which holds candidates for golden images too."""
    from small_run import write_small_run

    run = tmp_path_factory.mktemp("runs") / "small"
    run.mkdir()
    return write_small_run(run)


@pytest.fixture(scope="session")
def exported(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """What exporting it for cpu gives, by precision, made once: read the bundles, copy them, but don't change them."""
    from stlm_edge.export.pipeline import export

    folder = tmp_path_factory.mktemp("exported")
    return {
        precision: export("cpu", checkpoint=small_checkpoint, precision=precision, out=folder / precision)
        for precision in ("int8", "fp32")
    }


@pytest.fixture
def convert_by(exported: dict[str, Exported], monkeypatch: pytest.MonkeyPatch) -> ConvertBy:
    """Let conversions to ONNX give its float32 file with this damage, or None."""
    from damage import convert_to

    return lambda damage: convert_to(exported["fp32"].folder / "model.onnx", monkeypatch, damage)


@pytest.fixture(scope="session")
def exported_via_openvino(
    exported: dict[str, Exported], small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """The same via openvino, from the ONNX file that stands there already."""
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
    """The same for android; the conversion to float32, which takes long, is done once for all precisions."""
    from stlm_edge.converters import litert
    from stlm_edge.export.pipeline import export

    folder = tmp_path_factory.mktemp("exported-for-android")
    convert = litert.to_tflite

    def once(model: object, path: Path, *arguments: object) -> None:
        if not (folder / "model.tflite").exists():
            convert(model, folder / "model.tflite", *arguments)
        shutil.copyfile(folder / "model.tflite", path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litert, "to_tflite", once)
        return {
            precision: export("android", checkpoint=small_checkpoint, precision=precision, out=folder / precision)
            for precision in ("int8", "fp16", "fp32")
        }


@pytest.fixture(scope="session")
def even_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a map whose values are near each other: one that fp16 keeps."""
    from small_run import write_small_run

    run = tmp_path_factory.mktemp("runs") / "even"
    run.mkdir()
    return write_small_run(run, even=True)


@pytest.fixture(scope="session")
def told_apart(even_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images that it tells apart: those of its lowest scores as good/, of its highest as high/."""
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
    """A folder with its fp32.mlpackage, fp16.mlpackage and int8.mlpackage: read and copy, but don't change them."""
    from stlm_edge.converters import coreml
    from stlm_edge.converters.onnx import quiet
    from stlm_edge.model import checkpoint

    folder = tmp_path_factory.mktemp("coreml")
    opened = checkpoint.load(even_checkpoint)
    assert opened.decision_threshold is not None
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
    """The same for ios, from these packages."""
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
    """Its float32 ONNX file, which all typed files are made from."""
    from stlm_edge.converters.onnx import to_onnx
    from stlm_edge.model import checkpoint

    trained = checkpoint.load(even_checkpoint)
    assert trained.decision_threshold is not None
    path = tmp_path_factory.mktemp("even") / "model.onnx"
    to_onnx(trained.model, path, trained.decision_threshold)
    return path


@pytest.fixture(scope="session")
def exported_for_jetson(
    even_checkpoint: Path, even_onnx: Path, told_apart: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """The same for jetson, from this file."""
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
    """The same for web, without naming a precision."""
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
    """The ten images that a network with random weights finds most normal: what it would be calibrated on on site."""
    import stlm_edge

    bundle, folder = stlm_edge.open(exported_for_android["int8"].folder), tmp_path_factory.mktemp("site")
    for path in sorted((tiny_images / "good").iterdir(), key=lambda path: bundle.predict(path).score)[:10]:
        shutil.copy(path, folder)
    return folder
