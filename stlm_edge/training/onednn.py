"""Matrix products by oneDNN instead of MKL, which on AMD processors is half as fast, for float32 training on a CPU.

PyTorch gives `nn.Linear` to MKL, and on one thread also 1×1 convolutions of fewer than 16 images. Viewed as a
channels-last map of 16 or more images, which needs no copy, the products and their gradients reach oneDNN.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LEAST_IMAGES, MOST_IMAGES = 16, 128
LEAST_ROWS = 256  # of the left matrix; with fewer, the call costs more than the product

_depth = 0


class ByOneDNN(TorchFunctionMode):
    """Context in which products of float32 tensors on the CPU go to oneDNN; sums are rounded in another order."""

    def __enter__(self) -> "ByOneDNN":
        global _depth
        super().__enter__()
        _depth += 1
        return self

    def __exit__(self, *error: Any) -> None:
        global _depth
        _depth -= 1
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs:
            return _linear(*args)
        if func is torch.conv2d and len(args) == 7 and not kwargs:
            x, filters, bias, stride, *rest = args
            return merge(func(split(x, filters, stride), filters, bias, stride, *rest), x)
        return func(*args, **(kwargs or {}))


def split(x: Tensor, filters: Tensor, stride: tuple[int, ...]) -> Tensor:
    """View a B×C×h×w map as one of 16 or more images of fewer rows, equivalent for a 1×1 convolution.

    Returns `x` itself outside of ByOneDNN and where the view would need a copy.
    """
    images, channels, height, width = x.shape
    count = _images(images * height)
    if not (
        _depth
        and filters.shape[1:] == (channels, 1, 1)
        and stride == (1, 1)
        and images < LEAST_IMAGES
        and images * height * width >= LEAST_ROWS
        and count
        and _suits(x)
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return x
    return x.permute(0, 2, 3, 1).reshape(count, -1, width, channels).permute(0, 3, 1, 2)


def merge(y: Tensor, x: Tensor) -> Tensor:
    """Return what was computed from `split(x)` as a map of as many images as `x` has."""
    if len(y) == len(x):
        return y
    return y.permute(0, 2, 3, 1).reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = x.numel() // x.shape[-1]
    count = _images(rows)
    if rows < LEAST_ROWS or not count or not _suits(x):
        return F.linear(x, weight, bias)
    y = F.conv2d(x.reshape(count, rows // count, 1, -1).permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _images(rows: int) -> int:
    """Return the least number of images that divides the rows, or 0."""
    return next((n for n in range(LEAST_IMAGES, MOST_IMAGES + 1) if rows % n == 0), 0)


def _suits(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
