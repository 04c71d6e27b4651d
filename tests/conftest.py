"""Fixtures shared by the tests: a small bundle that a real onnxruntime runs, and pictures that suit it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny import tiny_picture, write_tiny_bundle

if TYPE_CHECKING:
    from stlm_edge.export import Exported


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of TINY_SIZE, made once: read it, copy it, but don't change it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good/ (24 pictures) and spot/ (8) that suit the tiny bundle."""
    root = tmp_path_factory.mktemp("pictures")
    for kind, seeds in (("good", range(200, 224)), ("spot", range(301, 309))):
        (root / kind).mkdir()
        for seed in seeds:
            tiny_picture(seed, defect=kind == "spot").save(root / kind / f"{seed}.png")
    return root


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run folder of a small network (S=64), which holds candidates for golden pictures too."""
    from small_run import write_small_run

    run = tmp_path_factory.mktemp("runs") / "small"
    run.mkdir()
    return write_small_run(run)


@pytest.fixture(scope="session")
def exported(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """What exporting it for cpu gives, by precision, made once: read the bundles, copy them, but don't change them."""
    from stlm_edge.export import export

    folder = tmp_path_factory.mktemp("exported")
    return {
        precision: export("cpu", checkpoint=small_checkpoint, precision=precision, out=folder / precision)
        for precision in ("int8", "fp32")
    }
