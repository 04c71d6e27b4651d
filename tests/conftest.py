"""Fixtures shared by the tests: a small bundle that a real onnxruntime runs, and pictures that suit it."""

from pathlib import Path

import pytest
from tiny import tiny_picture, write_tiny_bundle


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
