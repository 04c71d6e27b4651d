"""STLM as one ONNX file: picture in, anomaly map and score out, everything constant already computed.

Input `image`, uint8 1×S×S×3 RGB; outputs `anomaly_map`, float32 1×1×S×S, and `score`, float32 of shape 1. Static
shapes, opset 20 (its Gelu is one node; TensorRT 10.3 reads no higher), no external data. The same checkpoint gives the
same bytes.
"""

import ast
import contextlib
import copy
import io
import itertools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stlm_edge.bundle import stamp
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import replacing
from stlm_edge.manifest import Calibration
from stlm_edge.model import STLM

try:
    import onnx
    import onnxscript  # noqa: F401 (the exporter needs it and says so less clearly)
    import onnxsim
except ImportError as error:
    raise UsageError(f'{error.name} is not installed; pip install "stlm-edge[export]"') from None

OPSET = 20
IR_VERSION = 10


def to_onnx(model: STLM, path: Path, calibration: Calibration) -> None:
    """Write the model, which is in evaluation mode and stays as it is, with its threshold in the file's metadata.

    Raises JobError when the exporter gives anything but a valid file of opset 20.
    """
    size = model.config.size
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            folded(model),
            (torch.zeros(1, size, size, 3, dtype=torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["anomaly_map", "score"],
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
        name_weights(proto)
        simplified, equal = onnxsim.simplify(proto)
    if not equal:
        raise JobError("onnxsim changed what the graph computes; report this with the versions of onnx and onnxsim")
    save(simplified, path, calibration, size)


def save(proto: "onnx.ModelProto", path: Path, calibration: Calibration, size: int) -> None:
    """Check the graph and write it with its threshold. Raises JobError when it isn't what this release ships."""
    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    if opsets.get("ai.onnx") != OPSET:
        raise JobError(f"the exporter wrote opsets {opsets}, expected ai.onnx {OPSET}; install the locked versions")
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version, proto.doc_string = "stlm-edge", "", ""
    proto.graph.name = "stlm"
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, stamp(calibration, size))
    for node in proto.graph.node:  # the exporter leaves stack traces with this machine's paths there
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        value.doc_string = ""
        del value.metadata_props[:]
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise JobError(f"the exported graph is not valid ONNX: {error}") from None
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def folded(model: STLM) -> STLM:
    """A copy whose batch norms are merged into the convolutions before them."""
    copied = copy.deepcopy(model).eval()
    for parent in list(copied.modules()):
        for (name, convolution), (following, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, following, nn.Identity())
    return copied


def name_weights(proto: "onnx.ModelProto") -> None:
    """Give the transposed weights of linear layers, which the exporter only numbers, their modules' names."""
    names = {}
    for node in proto.graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
        *_, module, operation = ["", "", *ast.literal_eval(scopes)]
        if node.op_type in ("MatMul", "Gemm") and operation.startswith("linear"):
            names[node.input[1]] = f"{module}.weight_transposed"
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for weight in [*proto.graph.initializer, *proto.graph.value_info]:
        weight.name = names.get(weight.name, weight.name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the converters' warnings, log lines and progress bars from the user: what matters is checked or raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
