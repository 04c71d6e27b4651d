"""The direction of imports, as `[tool.importlinter]` in pyproject.toml states it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = Path(sys.executable).with_name("lint-imports")


@pytest.fixture
def installed_tree(tmp_path: Path) -> Path:
    """Return the package in the layout of a wheel: converters/ inside stlm_edge/."""
    shutil.copytree(ROOT / "stlm_edge", tmp_path / "stlm_edge", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    shutil.copytree(ROOT / "converters", tmp_path / "stlm_edge" / "converters")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [LINT, "--no-cache"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_keep_the_contracts(installed_tree: Path) -> None:
    done = lint(installed_tree)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("model/stlm.py", "import stlm_edge.training.train"),
        ("bundle/parity.py", "import torch"),
        ("converters/onnx.py", "from stlm_edge.export import targets"),
    ],
)
def test_import_against_a_contract_is_reported(installed_tree: Path, module: str, line: str) -> None:
    path = installed_tree / "stlm_edge" / module
    path.write_text(f"{path.read_text('utf-8')}\n{line}\n", "utf-8")
    done = lint(installed_tree)
    assert done.returncode == 1
    assert module.removesuffix(".py").replace("/", ".") in done.stdout
