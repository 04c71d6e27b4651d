"""What an ONNX graph gives where float16 is computed in float16: a torch evaluator that rounds as a GPU may.

onnxruntime's CPU provider computes float16 in float32, and so hides the failures that float16 is known for (sums of
squares that overflow, sums that swallow what is added). Here every float16 operator rounds its result, and

- a product of matrices, and a convolution, is summed in float16 in blocks of 16 products. TensorRT guarantees of its
  accumulator only that its range is no less than that of the inputs (Precision Control, "Control of Computational
  Precision"); 16 is the depth of a tensor core's step;
- LayerNorm, softmax and the reductions square, exponentiate, sum (in the same blocks) and divide in float16. TensorRT
  says that its normalisation layer sums in float32, yet fused ones have been seen to overflow: this is the worst case;
- GELU, sigmoid and other functions of one value round their result.

What is typed float32 is computed in float32. int8 between a QuantizeLinear and a DequantizeLinear is exact. Any value
that is not finite, anywhere, raises JobError with its place.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from stlm_edge.converters.fp16_kernels import KERNELS, Attributes, compute
from stlm_edge.errors import JobError, UsageError
from stlm_edge.runtimes import Runtime

Watch = Callable[[onnx.NodeProto, Attributes, list[Any], tuple[Tensor, ...]], None]


class Fp16Simulation(Runtime):
    """Runs an artifact, a path or a loaded model, as a runtime does. Raises UsageError for an unknown operator."""

    name = "fp16 simulation"

    def __init__(self, artifact: Path | onnx.ModelProto) -> None:
        proto = artifact if isinstance(artifact, onnx.ModelProto) else onnx.load(artifact)
        self.artifact = proto.graph.name if isinstance(artifact, onnx.ModelProto) else artifact
        self.graph = proto.graph
        if unknown := sorted({node.op_type for node in self.graph.node} - set(KERNELS)):
            raise UsageError(f"the fp16 simulation has no {', '.join(unknown)}; add a kernel to fp16_kernels.py")
        self.constants = {
            weight.name: torch.from_numpy(np.array(numpy_helper.to_array(weight))) for weight in self.graph.initializer
        }
        self.attributes = [
            {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute} for node in self.graph.node
        ]
        self._last_use = {name: index for index, node in enumerate(self.graph.node) for name in node.input}
        self.size = self.graph.input[0].type.tensor_type.shape.dim[1].dim_value

    def _infer(self, image: np.ndarray) -> tuple[np.ndarray, float | None]:
        outputs = self.outputs(image)
        return outputs[0][0, 0].float().numpy(), float(outputs[1][0]) if len(outputs) == 2 else None

    def outputs(self, image: np.ndarray, watch: Watch | None = None, halved: str = "") -> list[Tensor]:
        """The graph's outputs. `watch` is shown each node with its attributes, its inputs and its outputs.

        `halved` names a float32 node that is computed in float16 all the same.
        """
        (given,) = self.graph.input
        tensor = torch.from_numpy(image.copy())[None]
        as_float = given.type.tensor_type.elem_type == TensorProto.FLOAT
        values: dict[str, Tensor] = self.constants | {given.name: tensor.float() if as_float else tensor}
        kept = {output.name for output in self.graph.output}
        with torch.inference_mode():
            for index, (node, attributes) in enumerate(zip(self.graph.node, self.attributes, strict=True)):
                operands = [values[name] if name else None for name in node.input]
                if node.name == halved:
                    results = tuple(result.float() for result in compute(node, attributes, in_half(operands)))
                else:
                    results = compute(node, attributes, operands)
                for name, result in zip(node.output, results, strict=False):
                    if result.is_floating_point() and not result.isfinite().all():
                        raise JobError(f"{node.op_type} {node.name}: its result {name} is not finite (NaN or infinite)")
                    values[name] = result
                if watch:
                    watch(node, attributes, operands, results)
                for name in set(node.input):
                    if self._last_use[name] == index and name not in kept and name not in self.constants:
                        values.pop(name, None)
        return [values[output.name] for output in self.graph.output]


def in_half(operands: list[Any]) -> list[Any]:
    """A node's operands with those of float32 rounded to float16."""
    return [x.half() if x is not None and x.dtype == torch.float32 else x for x in operands]
