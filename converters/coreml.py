"""STLM as a Core ML package: an RGB image in, anomaly map and score out, normalisation inside.

An mlprogram for iOS 17 and macOS 14. Input `image`, an RGB image of S×S (a CVPixelBuffer to Swift); outputs
`anomaly_map`, float32 1×1×S×S, and `score`, float32 of shape 1. All between is fp16, which the Neural Engine needs, but
for the end: from the last convolution on it is float32, as fp16 knows logits of −4, and the bias that makes them, to
2e-3 only, which moves every score by more than a verdict may bear. The calibration stands in the
package's user-defined metadata. The same checkpoint gives the same bytes.

Weights are fp16; or int8 with one scale per output channel; or indices of 6 bits into a table per tensor ("palette6", a
third less than int8). Such a palette has cost a trained network 0.7 points of image AUROC, more than the export's gate
allows: it ships only where the gate holds.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stlm_edge.converters.onnx import quiet
from stlm_edge.converters.shaping import folded
from stlm_edge.formats import metadata_entries
from stlm_edge.formats.coreml import MANIFEST, MODEL, WEIGHTS, manifest_text
from stlm_edge.model import STLM
from stlm_edge.model.tiny_vit import LayerNorm2d
from stlm_edge.runtimes.coreml import import_coremltools
from stlm_edge.threshold import DecisionThreshold

ct = import_coremltools()

SMALLEST_NORMAL = 2**-14  # of fp16; hardware may take what is smaller for 0, and a norm of zeros by it for 0/0
NORMS = ("layer_norm", "pow", "reduce_l2_norm", "reduce_mean", "rsqrt", "sqrt")  # whose squares may overflow in fp16
IN_FLOAT32: tuple[tuple[str, ...], ...] = ((), NORMS)  # what the export tries, in this order
LARGE = 2048  # values; smaller weights stay in fp16
_END = ("sigmoid", "upsample_bilinear", "reshape", "topk", "reduce_mean")


def to_coreml(
    model: STLM,
    path: Path,
    decision_threshold: DecisionThreshold,
    precision: str = "fp16",
    in_float32: tuple[str, ...] = (),
    in_fp16: Sequence[str] = (),
) -> None:
    """Write the model, which is in evaluation mode and stays as it is, as the folder `path`, which must not exist.

    `precision`: "fp32", "fp16", or of the weights "int8" or "palette6", where activations are fp16. `in_float32`: MIL
    operations that are computed in float32 all the same. `in_fp16`: layers whose names begin with one of these keep
    fp16 weights.
    """
    with quiet(), _temporary_files_in(path.parent):
        package = compressed(converted(model, precision, in_float32), precision, in_fp16)
        save(package, path, decision_threshold, model.config.size)


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let coremltools, which leaves some until the process ends, put its temporary files here, and remove them."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=folder) as tempfile.tempdir:
        try:
            yield
        finally:
            tempfile.tempdir = before


def converted(model: STLM, precision: str = "fp16", in_float32: tuple[str, ...] = ()) -> Any:
    """The model as coremltools' own, its weights not compressed yet."""
    size = model.config.size
    shape = (1, 3, size, size)
    in_half = ct.transform.FP16ComputePrecision(_in_fp16(in_float32))
    merged = folded(model)
    for module in merged.modules():
        if precision != "fp32" and isinstance(module, (torch.nn.LayerNorm, LayerNorm2d)):
            module.eps = max(module.eps, SMALLEST_NORMAL)
    with torch.no_grad():
        program = torch.export.export(merged, (torch.zeros(shape),)).run_decompositions({})
        return ct.convert(
            program,
            inputs=[ct.ImageType(name="image", shape=shape, color_layout=ct.colorlayout.RGB)],
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in ("anomaly_map", "score")],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else in_half,
            skip_model_load=True,
        )


def _in_fp16(in_float32: tuple[str, ...]) -> Callable[[Any], bool]:
    def chosen(operation: Any) -> bool:
        logits = any(following.op_type == "sigmoid" for following in operation.outputs[0].child_ops)
        return not (logits or _after_logits(operation) or operation.op_type in in_float32)

    return chosen


def _after_logits(operation: Any) -> bool:
    """Whether the operation is the sigmoid, or one of those that make map and score from what it gives."""
    while operation is not None and operation.op_type in _END:
        if operation.op_type == "sigmoid":
            return True
        operation = operation.x.op
    return False


def compressed(package: Any, precision: str, in_fp16: Sequence[str] = ()) -> Any:
    """The package with its weights in `precision`; it stays as it is where that is a float."""
    from coremltools.optimize import coreml as optimize

    if precision not in ("int8", "palette6"):
        return package
    begins = tuple(f"p_{name.replace('.', '_')}" for name in in_fp16)  # as torch.export names parameters
    names = optimize.get_weights_metadata(package, weight_threshold=LARGE) if begins else ()
    kept = {name: None for name in names if name.startswith(begins)}
    if precision == "palette6":
        palette = optimize.OpPalettizerConfig(mode="kmeans", nbits=6, weight_threshold=LARGE)
        return optimize.palettize_weights(
            package, optimize.OptimizationConfig(global_config=palette, op_name_configs=kept)
        )
    config = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=LARGE)
    return optimize.linear_quantize_weights(
        package, optimize.OptimizationConfig(global_config=config, op_name_configs=kept)
    )


def save(package: Any, path: Path, decision_threshold: DecisionThreshold, size: int) -> None:
    """Write a package with its calibration and without what differs from one run to the next: dates, UUIDs, order."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".coreml-") as name:
        saved = Path(name) / "model.mlpackage"
        package.save(str(saved))
        (path / WEIGHTS).parent.mkdir(parents=True)
        shutil.move(saved / WEIGHTS, path / WEIGHTS)
        model = ct.proto.Model_pb2.Model()
        model.ParseFromString((saved / MODEL).read_bytes())
    metadata = model.description.metadata
    metadata.Clear()
    metadata.shortDescription = (
        "STLM: visual anomaly detection. An image whose score is above the threshold is anomalous."
    )
    metadata.author = "stlm-edge"
    metadata.userDefined.update(metadata_entries(decision_threshold, size))
    (path / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    (path / MANIFEST).write_text(manifest_text(), encoding="utf-8")
