"""Conversion to one ONNX file: image in, anomaly map and score out, all constants computed beforehand.

Static shapes, opset 20 (which has Gelu; TensorRT 10.3 reads no higher opset), no external data. The same checkpoint
always gives the same bytes.
"""

import ast
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from stlm_edge.converters import quiet
from stlm_edge.converters.export_form import export_form
from stlm_edge.errors import JobError
from stlm_edge.files import replacing
from stlm_edge.formats import metadata_entries
from stlm_edge.model import STLM
from stlm_edge.threshold import DecisionThreshold

with quiet():
    import onnx
    import onnxscript  # noqa: F401, which the exporter needs
    import onnxsim
    from onnx import numpy_helper

OPSET = 20
IR_VERSION = 10
FIRST_STAGE = r"(plain|denoising)/(patch_embed|layers/0)/"  # in names of nodes: whose rounding shows most in the map


def to_onnx(model: STLM, path: Path, threshold: DecisionThreshold) -> None:
    """Write the model, in evaluation mode. Raises JobError like `save`."""
    save(exported(export_form(model), model.config.size), path, threshold)


def exported(network: nn.Module, size: int) -> "onnx.ModelProto":
    """Return the graph of a network that takes uint8 1×size×size×3 and returns the map and the score."""
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
        _transpose_weights(proto.graph)
        _name_nodes(proto.graph)
        simplified, equal = onnxsim.simplify(proto)
    if not equal:
        raise JobError("onnxsim changed what the graph computes; report this with the versions of onnx and onnxsim")
    _name_values(simplified.graph)
    return simplified


def save(proto: "onnx.ModelProto", path: Path, threshold: DecisionThreshold) -> None:
    """Write the graph with its threshold, without the traces of this machine.

    Raises JobError if it is not valid, or not one of opset 20 and standard operators.
    """
    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    if opsets != {"ai.onnx": OPSET}:
        raise JobError(
            f"the exporter wrote opsets {opsets}, expected only ai.onnx {OPSET}; install the locked versions"
        )
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version, proto.doc_string = "stlm-edge", "", ""
    proto.graph.name = "stlm"
    del proto.metadata_props[:]
    size = proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    onnx.helper.set_model_props(proto, metadata_entries(threshold, size))
    graph = proto.graph
    for entry in [*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]:
        entry.doc_string = ""
        del entry.metadata_props[:]  # the exporter's stack traces
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise JobError(f"the exported graph is not valid ONNX: {error}") from None
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def _transpose_weights(graph: "onnx.GraphProto") -> None:
    """Store the weights of linear layers as input×output, as `<module>.weight_transposed`."""
    weights = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        flags = [entry for entry in node.attribute if entry.name == "transB"]
        if node.op_type == "Gemm" and flags and flags[0].i and node.input[1] in weights:
            weight = weights[node.input[1]]
            transposed = numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), f"{weight.name}_transposed")
            node.attribute.remove(flags[0])
            node.input[1] = transposed.name
            graph.initializer.append(transposed)  # onnxsim drops the other


def _name_nodes(graph: "onnx.GraphProto") -> None:
    """Name nodes by module and operator, such as plain/layers/3/blocks/1/attn/qkv/Gemm."""
    modules: dict[str, str] = {}  # by the values that they compute
    taken: Counter[str] = Counter()
    for node in graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
        module = ast.literal_eval(scopes)[-2] if scopes else modules.get(node.input[0], "")
        modules.update(dict.fromkeys(node.output, module))
        name = "/".join(filter(None, [module.replace(".", "/"), node.op_type]))
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def _name_values(graph: "onnx.GraphProto") -> None:
    """Name the results of a node after the node, the second and third with :1 and :2."""
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
