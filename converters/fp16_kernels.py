"""Kernels of the ONNX operators that the exporter writes, in float32 or in float16 as a GPU may compute it.

In float16, a matrix product or a convolution is summed in blocks of BLOCK products, and rounded after each block.
"""

import math
from collections.abc import Callable
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from stlm_edge.errors import JobError, UsageError

BLOCK = 16  # products that are added before the sum is rounded

Attributes = dict[str, Any]
Kernel = Callable[[Attributes, list[Any]], Any]


def compute(node: onnx.NodeProto, attributes: Attributes, operands: list[Any]) -> tuple[Tensor, ...]:
    """Return a node's results. Raises JobError if float operands differ in type, which TensorRT refuses."""
    types = {x.dtype for x in operands if x is not None and x.is_floating_point()}
    if len(types) > 1:
        raise JobError(f"{node.op_type} {node.name}: operands of types {sorted(map(str, types))}, expected one")
    results = KERNELS[node.op_type](attributes, operands)
    return results if isinstance(results, tuple) else (results,)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices, in float16 with a float16 sum."""
    if a.dtype != torch.float16:
        return a @ b
    depth = a.shape[-1]
    a, b = a.float(), b.float()
    total = (a[..., :BLOCK] @ b[..., :BLOCK, :]).half()
    for start in range(BLOCK, depth, BLOCK):
        part = a[..., start : start + BLOCK] @ b[..., start : start + BLOCK, :]
        total = part.add_(total).half()
    return total


def _sum(x: Tensor, axes: list[int], keepdims: bool = True) -> Tensor:
    """Sum over `axes`, in float16 with a float16 sum."""
    axes = [axis % x.dim() for axis in axes]
    if x.dtype != torch.float16:
        return x.sum(axes, keepdim=keepdims)
    kept = [axis for axis in range(x.dim()) if axis not in axes]
    shape = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
    flat = x.permute(*kept, *axes).reshape(*(x.shape[axis] for axis in kept), -1)
    total = torch.zeros(flat.shape[:-1], dtype=torch.float16)
    for part in flat.float().split(BLOCK, dim=-1):
        total = (total.float() + part.sum(-1)).half()
    return total.reshape(shape) if keepdims else total


def _mean(x: Tensor, axes: list[int], keepdims: bool = True) -> Tensor:
    return _sum(x, axes, keepdims) / math.prod(x.shape[axis] for axis in axes)


def _conv(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, weight, bias = [*operands, None][:3]
    groups, stride = attributes.get("group", 1), attributes.get("strides", [1, 1])
    pads, dilation = attributes.get("pads", [0, 0, 0, 0]), attributes.get("dilations", [1, 1])
    half = x.dtype == torch.float16
    x = F.pad(x.float(), (pads[1], pads[3], pads[0], pads[2]))
    if not half:
        return F.conv2d(x, weight, bias, stride, 0, dilation, groups)
    if weight[0].numel() <= BLOCK:
        y = F.conv2d(x, weight.float(), None, stride, 0, dilation, groups).half()
    else:
        shape = F.conv2d(x.to("meta"), weight.float().to("meta"), None, stride, 0, dilation, groups).shape
        columns = F.unfold(x, weight.shape[2:], dilation, 0, stride).half()
        n, _, places = columns.shape
        columns = columns.reshape(n, groups, -1, places)
        y = _product(weight.reshape(groups, weight.shape[0] // groups, -1), columns).reshape(shape)
    return y if bias is None else y + bias[:, None, None]


def _gemm(attributes: Attributes, operands: list[Any]) -> Tensor:
    y = _product(*operands[:2])
    return y + operands[2] if len(operands) == 3 else y


def _layer_norm(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, scale, bias = [*operands, None][:3]
    axes = list(range(attributes.get("axis", -1) % x.dim(), x.dim()))
    centred = x - _mean(x, axes)
    y = centred / (_mean(centred * centred, axes) + attributes.get("epsilon", 1e-5)).sqrt() * scale
    return y if bias is None else y + bias


def _softmax(attributes: Attributes, operands: list[Any]) -> Tensor:
    (x,) = operands
    axis = attributes.get("axis", -1)
    raised = (x - x.amax(axis, keepdim=True)).exp()
    return raised / _sum(raised, [axis])


def _reduce(reduction: Callable[[Tensor, list[int], bool], Tensor]) -> Kernel:
    return lambda attributes, operands: reduction(
        operands[0], operands[1].tolist(), bool(attributes.get("keepdims", 1))
    )


def _resize(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, _, scales = operands
    mode, transformation = attributes["mode"], attributes["coordinate_transformation_mode"]
    if mode != b"linear" or transformation not in (b"half_pixel", b"pytorch_half_pixel"):
        raise UsageError(f"the fp16 simulation has no Resize {mode} {transformation}; add it to fp16_kernels.py")
    factors = tuple(scales[-2:].tolist())
    return F.interpolate(x.float(), scale_factor=factors, mode="bilinear", align_corners=False).to(x.dtype)


def _slice(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, starts, ends, axes = operands[:4]
    steps = operands[4] if len(operands) == 5 else torch.ones_like(starts)
    cut = [slice(None)] * x.dim()
    for axis, *bounds in zip(axes.tolist(), starts.tolist(), ends.tolist(), steps.tolist(), strict=True):
        cut[axis] = slice(*bounds)
    return x[tuple(cut)]


def _pad(attributes: Attributes, operands: list[Any]) -> Tensor:
    before, after = operands[1].reshape(2, -1).tolist()
    sides = [side for pair in zip(before[::-1], after[::-1], strict=True) for side in pair]
    return F.pad(operands[0], sides)


def _unsqueeze(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, axes = operands
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _per_axis(scale: Tensor, axis: int, rank: int) -> Tensor:
    return scale.reshape([-1 if scale.dim() and i == axis % rank else 1 for i in range(rank)])


def _quantize(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, scale = operands[:2]
    return (x.float() / _per_axis(scale.float(), attributes.get("axis", 1), x.dim())).round().clamp(-128, 127).char()


def _dequantize(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, scale = operands[:2]
    return (x.float() * _per_axis(scale.float(), attributes.get("axis", 1), x.dim())).to(scale.dtype)


def _elementwise(function: Callable[..., Tensor]) -> Kernel:
    """Return a kernel that computes in float32 and rounds the result to its operands' type."""

    def kernel(attributes: Attributes, operands: list[Any]) -> Tensor:
        if operands[0].dtype != torch.float16:
            return function(*operands)
        return function(*(x.float() for x in operands)).half()

    return kernel


_TYPES = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.FLOAT16: torch.float16}
KERNELS: dict[str, Kernel] = {  # all in onnx-tensorrt's operator table (docs/operators.md, 10.3 to 10.15)
    "Add": _elementwise(torch.add),
    "Cast": lambda a, x: x[0].to(_TYPES[a["to"]]),
    "Clip": lambda a, x: x[0].clamp(*x[1:]),
    "Concat": lambda a, x: torch.cat(x, a["axis"]),
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": _elementwise(torch.div),
    "Gather": lambda a, x: x[0][(slice(None),) * a.get("axis", 0) + (x[1],)],
    "Gelu": _elementwise(F.gelu),
    "Gemm": _gemm,
    "LayerNormalization": _layer_norm,
    "MatMul": lambda a, x: _product(*x),
    "Mul": _elementwise(torch.mul),
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "ReduceL2": _reduce(lambda x, axes, keepdims: _sum(x * x, axes, keepdims).sqrt()),
    "ReduceMean": _reduce(_mean),
    "Relu": _elementwise(torch.relu),
    "Reshape": lambda a, x: x[0].reshape(x[1].tolist()),
    "Resize": _resize,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": lambda a, x: x[0].chunk(a["num_outputs"], a.get("axis", 0)),
    "Squeeze": lambda a, x: x[0].squeeze(x[1].tolist()),
    "Sub": _elementwise(torch.sub),
    "TopK": lambda a, x: tuple(x[0].topk(int(x[1]), a.get("axis", -1))),
    "Transpose": lambda a, x: x[0].permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
}
