"""What each ONNX operator gives, in float32 or in float16 as a GPU may compute it (see `fp16_simulation.py`).

A product of matrices or a convolution in float16 is summed in blocks of BLOCK products, the sum rounded after each.
"""

import math
from collections.abc import Callable, Iterable
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
    """One node's results. Raises JobError when float operands are of different types, which TensorRT refuses."""
    types = {x.dtype for x in operands if x is not None and x.is_floating_point()}
    if len(types) > 1:
        raise JobError(f"{node.op_type} {node.name}: operands of types {sorted(map(str, types))}, expected one")
    results = KERNELS[node.op_type](attributes, operands)
    return results if isinstance(results, tuple) else (results,)


# Sums


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, in float16 with a float16 sum."""
    if a.dtype != torch.float16:
        return a @ b
    depth = a.shape[-1]
    a, b = a.float(), b.float()
    total = (a[..., :BLOCK] @ b[..., :BLOCK, :]).half()
    for start in range(BLOCK, depth, BLOCK):
        part = a[..., start : start + BLOCK] @ b[..., start : start + BLOCK, :]
        total = part.add_(total).half()
    return total


def _sum(x: Tensor, axes: Iterable[int], keepdims: bool = True) -> Tensor:
    """The sum over `axes`, in float16 with a float16 sum."""
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
    if x.dtype != torch.float16:
        x = F.pad(x, (pads[1], pads[3], pads[0], pads[2]))
        return F.conv2d(x, weight, bias, stride, 0, dilation, groups)
    x = F.pad(x.float(), (pads[1], pads[3], pads[0], pads[2]))
    if weight[0].numel() <= BLOCK:
        y = F.conv2d(x, weight.float(), None, stride, 0, dilation, groups).half()
    else:
        kernel = weight.shape[2:]
        height, width = (
            (side - step * (k - 1) - 1) // by + 1
            for side, step, k, by in zip(x.shape[2:], dilation, kernel, stride, strict=True)
        )
        columns = F.unfold(x, kernel, dilation, 0, stride).half()
        n, _, places = columns.shape
        columns = columns.reshape(n, groups, -1, places)
        y = _product(weight.reshape(groups, weight.shape[0] // groups, -1), columns)
        y = y.reshape(n, weight.shape[0], height, width)
    return y if bias is None else y + bias[:, None, None]


def _gemm(attributes: Attributes, operands: list[Any]) -> Tensor:
    a, b, c = [*operands, None][:3]
    a = a.T if attributes.get("transA") else a
    b = b.T if attributes.get("transB") else b
    y = _product(a, b)
    if (alpha := attributes.get("alpha", 1.0)) != 1.0:
        y = y * alpha
    return y if c is None else y + attributes.get("beta", 1.0) * c


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


def _reduce(sum_up: Callable[[Tensor, list[int], bool], Tensor]) -> Kernel:
    def kernel(attributes: Attributes, operands: list[Any]) -> Tensor:
        x, axes = [*operands, None][:2]
        assert x is not None
        over = axes.tolist() if axes is not None else list(range(x.dim()))
        return sum_up(x, over, bool(attributes.get("keepdims", 1)))

    return kernel


# The rest


def _topk(attributes: Attributes, operands: list[Any]) -> tuple[Tensor, ...]:
    x, k = operands
    largest = bool(attributes.get("largest", 1))
    return tuple(x.topk(int(k.item()), attributes.get("axis", -1), largest, sorted=True))


def _resize(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, _, scales, sizes = [*operands, None, None][:4]
    mode = attributes["mode"].decode()
    transformation = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    if mode != "linear" or transformation not in ("half_pixel", "pytorch_half_pixel"):
        raise UsageError(f"the fp16 simulation has no Resize {mode} {transformation}; add it to fp16_kernels.py")
    if sizes is not None:
        side = [int(n) for n in sizes[-2:]]
    else:
        assert scales is not None
        side = [int(n * scale) for n, scale in zip(x.shape[-2:], scales[-2:], strict=True)]
    return F.interpolate(x.float(), size=side, mode="bilinear", align_corners=False).to(x.dtype)


def _slice(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, starts, ends, axes, steps = [*operands, None, None][:5]
    over = axes.tolist() if axes is not None else range(len(starts))
    by = steps.tolist() if steps is not None else [1] * len(starts)
    cut = [slice(None)] * x.dim()
    for axis, start, end, step in zip(over, starts.tolist(), ends.tolist(), by, strict=True):
        cut[axis] = slice(start, end, step)
    return x[tuple(cut)]


def _pad(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, pads, value, axes = [*operands, None, None][:4]
    over = [axis % x.dim() for axis in axes.tolist()] if axes is not None else list(range(x.dim()))
    amounts = dict(zip(over, zip(pads[: len(over)].tolist(), pads[len(over) :].tolist(), strict=True), strict=True))
    flat = [side for axis in reversed(range(x.dim())) for side in amounts.get(axis, (0, 0))]
    return F.pad(x, flat, value=0.0 if value is None else float(value))


def _split(attributes: Attributes, operands: list[Any]) -> tuple[Tensor, ...]:
    x, sizes = [*operands, None][:2]
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return x.split(sizes.tolist(), axis)
    return x.split(-(-x.shape[axis] // attributes["num_outputs"]), axis)


def _reshape(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, shape = operands
    sides = shape.tolist()
    if not attributes.get("allowzero"):
        sides = [x.shape[axis] if n == 0 else n for axis, n in enumerate(sides)]
    return x.reshape(sides)


def _clip(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, low, high = [*operands, None, None][:3]
    return x.clamp(low, high)


def _per_axis(scale: Tensor, axis: int, rank: int) -> Tensor:
    return scale.reshape([-1 if scale.dim() and i == axis % rank else 1 for i in range(rank)])


def _quantize(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, scale = operands[:2]
    return (x.float() / _per_axis(scale.float(), attributes.get("axis", 1), x.dim())).round().clamp(-128, 127).char()


def _dequantize(attributes: Attributes, operands: list[Any]) -> Tensor:
    x, scale = operands[:2]
    return (x.float() * _per_axis(scale.float(), attributes.get("axis", 1), x.dim())).to(scale.dtype)


_TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.UINT8: torch.uint8,
}


def _each(function: Callable[..., Tensor]) -> Kernel:
    """A function of one value or two, computed in float32, its result rounded to its operands' type."""

    def kernel(attributes: Attributes, operands: list[Any]) -> Tensor:
        first = operands[0]
        assert first is not None
        if first.dtype != torch.float16:
            return function(*operands)
        return function(*(x.float() for x in operands if x is not None)).half()

    return kernel


KERNELS: dict[str, Kernel] = {
    "Abs": _each(torch.abs),
    "Add": _each(torch.add),
    "Cast": lambda a, x: x[0].to(_TYPES[a["to"]]),
    "Clip": _clip,
    "Concat": lambda a, x: torch.cat(x, a["axis"]),
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": _each(torch.div),
    "Exp": _each(torch.exp),
    "Expand": lambda a, x: x[0] * torch.ones(x[1].tolist(), dtype=x[0].dtype),
    "Flatten": lambda a, x: x[0].reshape(math.prod(x[0].shape[: a.get("axis", 1)]), -1),
    "Gather": lambda a, x: (
        x[0]
        .index_select(a.get("axis", 0), x[1].flatten())
        .reshape(
            *x[0].shape[: a.get("axis", 0)],
            *x[1].shape,
            *x[0].shape[a.get("axis", 0) + 1 :],
        )
    ),
    "Gelu": lambda a, x: _each(lambda v: F.gelu(v, approximate=a.get("approximate", b"none").decode()))(a, x),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: _mean(x[0], [2, 3]),
    "Identity": lambda a, x: x[0],
    "LayerNormalization": _layer_norm,
    "MatMul": lambda a, x: _product(*x),
    "Max": _each(torch.maximum),
    "Mul": _each(torch.mul),
    "Neg": _each(torch.neg),
    "Pad": _pad,
    "Pow": _each(torch.pow),
    "QuantizeLinear": _quantize,
    "Reciprocal": _each(torch.reciprocal),
    "ReduceL2": _reduce(lambda x, axes, keep: _sum(x * x, axes, keep).sqrt()),
    "ReduceMean": _reduce(_mean),
    "ReduceSum": _reduce(_sum),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: _sum(x * x, axes, keep)),
    "Relu": _each(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _each(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _each(torch.sqrt),
    "Squeeze": lambda a, x: x[0].squeeze(x[1].tolist()),
    "Sub": _each(torch.sub),
    "Tanh": _each(torch.tanh),
    "TopK": _topk,
    "Transpose": lambda a, x: x[0].permute(a["perm"]),
    "Unsqueeze": lambda a, x: x[0].reshape(_unsqueezed(x[0].shape, x[1].tolist())),
}


def _unsqueezed(shape: torch.Size, axes: list[int]) -> list[int]:
    rank, sides = len(shape) + len(axes), iter(shape)
    new = {axis % rank for axis in axes}
    return [1 if axis in new else next(sides) for axis in range(rank)]
