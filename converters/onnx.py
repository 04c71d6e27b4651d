"""STLM as one ONNX file: image in, anomaly map and score out, everything constant already computed.

Input `image`, uint8 1×S×S×3 RGB; outputs `anomaly_map`, float32 1×1×S×S, and `score`, float32 of shape 1. Static
shapes, opset 20 (its Gelu is one node; TensorRT 10.3 reads no higher), no external data. The same checkpoint gives the
same bytes.
"""

import ast
import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from stlm_edge.converters.shaping import folded, shaped
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import replacing
from stlm_edge.formats import metadata_entries
from stlm_edge.model import STLM
from stlm_edge.threshold import DecisionThreshold

try:
    import onnx
    import onnxscript  # noqa: F401 (the exporter needs it and says so less clearly)
    import onnxsim
    from onnx import numpy_helper
except ImportError as error:
    raise UsageError(f'{error.name} is not installed; pip install "stlm-edge[export]"') from None

OPSET = 20
IR_VERSION = 10
SPOKEN = {  # parts of modules' paths, as they are called in a node's name
    r"^(plain|denoising)\.layers\.": r"\1.stage",
    r"\.(blocks|layers)\.": ".block",
    r"\.attn\b": ".attention",
}


def to_onnx(model: STLM, path: Path, decision_threshold: DecisionThreshold) -> None:
    """Write the model, which is in evaluation mode and stays as it is, with its threshold in the file's metadata.

    Raises JobError when the exporter gives anything but a valid file of opset 20.
    """
    save(_exported(shaped(model), model.config.size), path, decision_threshold, model.config.size)


def plain_onnx(model: STLM, path: Path, decision_threshold: DecisionThreshold) -> None:
    """Write the model as it is but for its batch norms: what `benchmarks/graph.py` measures `to_onnx` against."""
    save(_exported(folded(model), model.config.size), path, decision_threshold, model.config.size)


def _exported(network: nn.Module, size: int) -> "onnx.ModelProto":
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (torch.zeros(1, size, size, 3, dtype=torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["anomaly_map", "score"],
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
        transpose_weights(proto.graph)
        name_nodes(proto.graph)
        simplified, equal = onnxsim.simplify(proto)
    if not equal:
        raise JobError("onnxsim changed what the graph computes; report this with the versions of onnx and onnxsim")
    name_values(simplified.graph)
    return simplified


def save(proto: "onnx.ModelProto", path: Path, decision_threshold: DecisionThreshold, size: int) -> None:
    """Check the graph and write it with its threshold. Raises JobError when it isn't what this release ships."""
    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    if opsets.get("ai.onnx") != OPSET:
        raise JobError(f"the exporter wrote opsets {opsets}, expected ai.onnx {OPSET}; install the locked versions")
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version, proto.doc_string = "stlm-edge", "", ""
    proto.graph.name = "stlm"
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, metadata_entries(decision_threshold, size))
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


def transpose_weights(graph: "onnx.GraphProto") -> None:
    """Keep linear layers' weights as their product takes them, input×output, named `<module>.weight_transposed`."""
    weights = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        flags = [entry for entry in node.attribute if entry.name == "transB"]
        if node.op_type == "Gemm" and flags and flags[0].i and node.input[1] in weights:
            weight = weights[node.input[1]]
            transposed = numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), f"{weight.name}_transposed")
            node.attribute.remove(flags[0])
            node.input[1] = transposed.name
            graph.initializer.append(transposed)  # onnxsim drops the other


def name_nodes(graph: "onnx.GraphProto") -> None:
    """Name nodes by module and operator: plain/stage3/block1/attention/qkv/Gemm."""
    modules: dict[str, str] = {}  # that made a value
    taken: Counter[str] = Counter()
    for node in graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
        module = ast.literal_eval(scopes)[-2] if scopes else modules.get(node.input[0], "")
        modules.update(dict.fromkeys(node.output, module))
        name = "/".join(filter(None, [spoken(module), node.op_type]))
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def spoken(module: str) -> str:
    """A module's path, or its beginning, as its nodes' names begin: plain.layers.3.blocks.1.attn as above."""
    for found, said in SPOKEN.items():
        module = re.sub(found, said, module)
    return module.replace(".", "/")


def name_values(graph: "onnx.GraphProto") -> None:
    """Name what nodes give by the node, a second and third result with :1 and :2."""
    outputs = {value.name for value in graph.output}
    names: dict[str, str] = {}
    for node in graph.node:
        for index, output in enumerate(node.output):
            if output not in outputs:
                names[output] = node.name if index == 0 else f"{node.name}:{index}"
        node.input[:] = [names.get(value, value) for value in node.input]
        node.output[:] = [names.get(value, value) for value in node.output]
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)


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
