"""Batch norm, GELU and convolution as one operation, which saves only the norm's input for the backward pass.

As three operations, each saves its input; at 1024×1024 that is most of the memory that training needs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stlm_edge.model.tiny_vit import ConvChain
from stlm_edge.training.onednn import merge, split


def save_memory(model: nn.Module) -> None:
    """Let every chain of convolutions in `model` use the fused operation."""
    for module in model.modules():
        if isinstance(module, ConvChain):
            module.norm_gelu_conv = norm_gelu_conv


def norm_gelu_conv(norm: nn.Module, conv: nn.Module, x: Tensor) -> Tensor:
    """Return conv(GELU(norm(x))) of a B×C×h×w map, fused if `norm` is a batch norm in training mode."""
    if not (norm.training and isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d and norm.momentum):
        return conv(F.gelu(norm(x)))
    norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    parts = split(x, conv.weight, conv.stride)
    return merge(_NormGELUConv.apply(parts, norm.weight, norm.bias, conv.weight, norm, conv), x)


class _NormGELUConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d
    ) -> Tensor:
        y, mean, inverse = torch.native_batch_norm(
            x, weight, bias, norm.running_mean, norm.running_var, True, norm.momentum or 0.0, norm.eps
        )
        ctx.save_for_backward(x, weight, bias, filters, mean, inverse)
        ctx.eps, ctx.conv = norm.eps, conv
        return F.conv2d(F.gelu(y), filters, None, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, filters, mean, inverse = ctx.saved_tensors
        conv = ctx.conv
        y = F.batch_norm(x, mean, inverse.pow(-2) - ctx.eps, weight, bias, False, 0.0, ctx.eps)
        gradient, to_filters, _ = torch.ops.aten.convolution_backward(
            gradient,
            F.gelu(y).to(gradient.dtype),
            filters.to(gradient.dtype),
            None,
            conv.stride,
            conv.padding,
            conv.dilation,
            False,
            [0, 0],
            conv.groups,
            [True, ctx.needs_input_grad[3], False],
        )
        gradient = torch.ops.aten.gelu_backward(gradient.to(y.dtype), y)
        del y
        to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse, True, ctx.eps, list(ctx.needs_input_grad[:3])
        )
        to_filters = None if to_filters is None else to_filters.to(filters.dtype)
        return to_x, to_weight, to_bias, to_filters, None, None
