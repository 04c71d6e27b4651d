"""Evaluation of an ONNX graph with real float16 arithmetic: a torch evaluator that rounds as a GPU may.

onnxruntime's CPU provider computes float16 in float32, which hides overflowing sums and sums that absorb small terms.
Here every float16 operator rounds its result, and products, norms, softmax and reductions are summed in float16, in
blocks of 16, the depth of a tensor core's step: TensorRT only guarantees that its accumulator has at least the range of
the inputs (developer guide, "Control of Computational Precision"). float32 and int8 tensors are computed exactly.
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
from stlm_edge.verdict import score_of_map

Watch = Callable[[onnx.NodeProto, Attributes, list[Any], tuple[Tensor, ...]], None]


class Fp16Simulation:
    """Runs an ONNX file, or a loaded model, like a runtime. Raises UsageError for an operator without kernel."""

    name = "fp16 simulation"

    def __init__(self, artifact: Path | onnx.ModelProto) -> None:
        proto = artifact if isinstance(artifact, onnx.ModelProto) else onnx.load(artifact)
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

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """uint8 RGB S×S×3 in; anomaly map float32 S×S and score out. Raises JobError where a value isn't finite."""
        anomaly_map, *score = self.outputs(image)
        values = anomaly_map[0, 0].float().numpy()
        return values, float(score[0][0]) if score else score_of_map(values)

    def outputs(self, image: np.ndarray, watch: Watch | None = None, halved: str = "") -> list[Tensor]:
        """Return the graph's outputs for an image, uint8 S×S×3. Raises JobError where a value is not finite.

        `watch` is called with each node, its attributes, operands and results; the node `halved` computes in float16.
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
    """Return the operands with float32 ones rounded to float16."""
    return [x.half() if x is not None and x.dtype == torch.float32 else x for x in operands]
