"""Promises of every export, and the rows of targets that test_promises.py and test_faults.py use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stlm_edge.errors import JobError
from stlm_edge.export.pipeline import export

WRONG_THRESHOLD = r"stlm_edge\.threshold .*checkpoint"
WRONG_MAP = r"fp32 map differs by .*, at most 0\.0001 is allowed"
NOT_FINITE = r"the fp32 model fails on normal-00: .* not finite"

_ONNX = {"stlm-edge", "torch", "onnx", "onnxscript", "onnxsim"}


@dataclass(frozen=True)
class Row:
    """A target as it is exported in the tests, by the session's fixture `exported` (precision → Exported).

    `limits`: how far the map may be from the trained model's, by precision. `run_by`: what runs it on this machine.
    """

    exported: str
    checkpoint: str
    target: str
    via: str | None
    runtime: str
    artifact: str
    limits: dict[str, float]
    run_by: str
    tools: set[str]
    checked_by: tuple[str, ...]
    input: tuple[str, bool] = ("uint8", True)  # the graph's input type, and whether it computes the score

    def __str__(self) -> str:
        """Return the row's name in test IDs."""
        return "-".join(filter(None, [self.target, self.via]))


ROWS = [
    Row(
        exported="exported",
        checkpoint="small_checkpoint",
        target="cpu",
        via=None,
        runtime="onnxruntime",
        artifact="model.onnx",
        limits={"fp32": 1e-4, "int8": 0.1},
        run_by="onnxruntime",
        tools=_ONNX | {"onnxruntime"},
        checked_by=("onnxruntime",),
    ),
    Row(
        exported="exported_via_openvino",
        checkpoint="small_checkpoint",
        target="cpu",
        via="openvino",
        runtime="openvino",
        artifact="model.openvino",
        limits={"fp32": 1e-4, "fp16": 5e-3, "int8": 0.3},
        run_by="openvino",
        tools=_ONNX | {"openvino", "nncf"},
        checked_by=("openvino",),
    ),
    Row(
        exported="exported_for_android",
        checkpoint="small_checkpoint",
        target="android",
        via=None,
        runtime="litert",
        artifact="model.tflite",
        limits={"fp32": 1e-4, "fp16": 5e-3, "int8": 0.2},
        run_by="litert",
        tools={"stlm-edge", "torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert"},
        checked_by=("litert",),
        input=("float32", False),
    ),
    Row(
        exported="exported_for_jetson",
        checkpoint="even_checkpoint",
        target="jetson",
        via=None,
        runtime="tensorrt",
        artifact="model.onnx",
        limits={"fp32": 1e-4, "fp16": 5e-3, "int8": 0.05},
        run_by="onnxruntime",
        tools=_ONNX | {"onnxruntime"},
        checked_by=("fp16 simulation", "onnxruntime"),
    ),
    Row(
        exported="exported_for_ios",
        checkpoint="even_checkpoint",
        target="ios",
        via=None,
        runtime="coreml",
        artifact="model.mlpackage",
        limits={"fp16": 5e-3, "int8": 0.1},
        run_by="coreml",
        tools={"stlm-edge", "torch", "coremltools"},
        checked_by=("coreml", "mil-evaluator, subnormals as 0"),
    ),
    Row(
        exported="exported_for_web",
        checkpoint="even_checkpoint",
        target="web",
        via=None,
        runtime="onnxruntime-web",
        artifact="model.onnx",
        limits={"fp16": 5e-3, "int8": 0.05},
        run_by="onnxruntime",
        tools=_ONNX | {"onnxruntime"},
        checked_by=("fp16 simulation", "onnxruntime"),
        input=("float32", False),
    ),
]


def assert_refused(target: str, reason: str, folder: Path, **given: Any) -> None:
    """Assert that the export fails for this reason, a regular expression, and leaves nothing in `folder`."""
    with pytest.raises(JobError, match=reason):
        export(target, out=folder / "bundle", **given)
    assert list(folder.iterdir()) == []
