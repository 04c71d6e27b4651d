"""Conversion to a Core ML package: an RGB image in, anomaly map and score out, normalisation inside.

An mlprogram for iOS 17 and macOS 14; the same checkpoint always gives the same bytes. Activations are fp16, which the
Neural Engine needs, and float32 from the last convolution on, as fp16 resolves logits of −4 to 2e-3 only. Weights are
fp16, int8 with one scale per output channel, or 6-bit indices into a table per tensor ("palette6").
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stlm_edge.converters import quiet
from stlm_edge.converters.export_form import fold_batch_norms
from stlm_edge.formats import metadata_entries
from stlm_edge.formats.coreml import MANIFEST, MODEL, WEIGHTS, manifest_text
from stlm_edge.model import STLM
from stlm_edge.model.tiny_vit import LayerNorm2d
from stlm_edge.runtimes.coreml import import_coremltools
from stlm_edge.threshold import DecisionThreshold

ct = import_coremltools()

MIN_NORMAL = 2**-14  # of fp16; hardware may flush smaller values to 0, so that a norm of zeros becomes 0/0
NORMS = ("layer_norm", "pow", "reduce_l2_norm", "reduce_mean", "rsqrt", "sqrt")  # whose squares may overflow in fp16
IN_FLOAT32: tuple[tuple[str, ...], ...] = ((), NORMS)  # candidates, in this order
LARGE = 2048  # values; smaller weights stay in fp16
_END = ("sigmoid", "upsample_bilinear", "reshape", "topk", "reduce_mean")


def to_coreml(
    model: STLM,
    path: Path,
    threshold: DecisionThreshold,
    precision: str = "fp16",
    in_float32: tuple[str, ...] = (),
    in_fp16: Sequence[str] = (),
) -> None:
    """Write the model, in evaluation mode, as the package `path`, which must not exist.

    `precision` is fp32, fp16, int8 or palette6. MIL operations `in_float32` are computed in float32; layers whose names
    begin with one of `in_fp16` keep fp16 weights.
    """
    before = tempfile.tempdir
    # coremltools leaves temporary files until the process ends.
    with quiet(), tempfile.TemporaryDirectory(dir=path.parent) as tempfile.tempdir:
        try:
            package = compressed(converted(model, precision, in_float32), precision, in_fp16)
            save(package, path, threshold, model.config.size)
        finally:
            tempfile.tempdir = before


def converted(model: STLM, precision: str = "fp16", in_float32: tuple[str, ...] = ()) -> Any:
    """Return the coremltools model, with weights not yet compressed."""
    size = model.config.size
    shape = (1, 3, size, size)
    folded = fold_batch_norms(model)
    for module in folded.modules():
        if precision != "fp32" and isinstance(module, (torch.nn.LayerNorm, LayerNorm2d)):
            module.eps = max(module.eps, MIN_NORMAL)

    def in_half(operation: Any) -> bool:
        is_last_convolution = any(following.op_type == "sigmoid" for following in operation.outputs[0].child_ops)
        return not (is_last_convolution or _is_end(operation) or operation.op_type in in_float32)

    with torch.no_grad():
        program = torch.export.export(folded, (torch.zeros(shape),)).run_decompositions({})
        return ct.convert(
            program,
            inputs=[ct.ImageType(name="image", shape=shape, color_layout=ct.colorlayout.RGB)],
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in ("anomaly_map", "score")],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32
            if precision == "fp32"
            else ct.transform.FP16ComputePrecision(in_half),
            skip_model_load=True,
        )


def _is_end(operation: Any) -> bool:
    """Return whether the operation is the sigmoid, or makes map and score from its result."""
    while operation is not None and operation.op_type in _END:
        if operation.op_type == "sigmoid":
            return True
        operation = operation.x.op
    return False


def compressed(package: Any, precision: str, in_fp16: Sequence[str] = ()) -> Any:
    """Return the package with its weights in `precision`, the same if that is a float type."""
    from coremltools.optimize import coreml as optimize

    if precision not in ("int8", "palette6"):
        return package
    begins = tuple(f"p_{name.replace('.', '_')}" for name in in_fp16)  # torch.export's names of parameters
    names = optimize.get_weights_metadata(package, weight_threshold=LARGE)
    kept = {name: None for name in names if name.startswith(begins)}
    if precision == "palette6":
        palette = optimize.OpPalettizerConfig(mode="kmeans", nbits=6, weight_threshold=LARGE)
        return optimize.palettize_weights(package, optimize.OptimizationConfig(palette, op_name_configs=kept))
    int8 = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=LARGE)
    return optimize.linear_quantize_weights(package, optimize.OptimizationConfig(int8, op_name_configs=kept))


def save(package: Any, path: Path, threshold: DecisionThreshold, size: int) -> None:
    """Write a package with its threshold, without dates, UUIDs and order, which differ from one run to the next."""
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
    metadata.userDefined.update(metadata_entries(threshold, size))
    (path / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    (path / MANIFEST).write_text(manifest_text(), encoding="utf-8")
