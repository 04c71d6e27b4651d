"""The image encoder: TinyViT-5M (Wu et al. 2022) in MobileSAM's variant (Zhang et al. 2023), for any grid.

Parameter names are MobileSAM's, so that its `image_encoder.*` weights load as they are. Between the stages an image is
a B×C×h×w map; inside attention blocks it is B×h×w×C. Operations keep the published order, because the decoder
amplifies rounding differences of 1e-6 to 1e-3.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW_SIZES = (7, 7, 14, 7)


class ConvBN(nn.Sequential):
    """A convolution without bias and its batch norm."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.add_module("c", nn.Conv2d(in_dim, out_dim, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(out_dim))


def norm_gelu_conv(norm: nn.Module, conv: nn.Module, x: Tensor) -> Tensor:
    """Return conv(GELU(norm(x))) of a B×C×h×w map."""
    return conv(F.gelu(norm(x)))


class ConvChain(nn.Module):
    """Base of modules that apply several `ConvBN`, a GELU between each and the next.

    Training replaces `norm_gelu_conv` of an instance by an equal function that needs less memory.
    """

    norm_gelu_conv: Callable[[nn.Module, nn.Module, Tensor], Tensor] = staticmethod(norm_gelu_conv)

    def chain(self, x: Tensor, *layers: Any) -> Tensor:
        """Apply the layers to a B×C×h×w map."""
        x = layers[0].c(x)
        for layer, following in pairwise(layers):
            x = self.norm_gelu_conv(layer.bn, following.c, x)
        return layers[-1].bn(x)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a B×C×h×w map."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """B×C×h×w → B×C×h×w."""
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class PatchEmbed(ConvChain):
    """3×S×S → 64×S/4×S/4."""

    def __init__(self, dim: int):
        super().__init__()
        self.seq = nn.Sequential(ConvBN(3, dim // 2, 3, 2), nn.GELU(), ConvBN(dim // 2, dim, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        """B×3×S×S → B×dim×S/4×S/4."""
        first, _, second = self.seq
        return self.chain(x, first, second)


class MBConv(ConvChain):
    """Inverted bottleneck, expansion 4, with the activation after the sum."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = ConvBN(dim, dim * 4)
        self.conv2 = ConvBN(dim * 4, dim * 4, 3, groups=dim * 4)
        self.conv3 = ConvBN(dim * 4, dim)

    def forward(self, x: Tensor) -> Tensor:
        """B×dim×h×w → B×dim×h×w."""
        return F.gelu(x + self.chain(x, self.conv1, self.conv2, self.conv3))


class PatchMerging(ConvChain):
    """Change to the next stage's channels, at half the resolution (stride 2) or the same (stride 1)."""

    def __init__(self, dim: int, out_dim: int, stride: int):
        super().__init__()
        self.conv1 = ConvBN(dim, out_dim)
        self.conv2 = ConvBN(out_dim, out_dim, 3, stride, groups=out_dim)
        self.conv3 = ConvBN(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """B×dim×h×w → B×out_dim×h/stride×w/stride."""
        return self.chain(x, self.conv1, self.conv2, self.conv3)


def bias_indices(window: int) -> Tensor:
    """Return each token pair's index, by |Δy| and |Δx|, in a table of window² biases: window²×window²."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y).abs() * window + (x[:, None] - x).abs()


class WindowAttention(nn.Module):
    """Multi-head attention within windows of w×w tokens, a learned bias per head and distance.

    The biases are gathered at every call: a cached copy would be stale after casts and loading of weights.
    """

    bias_index: Tensor

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("bias_index", bias_indices(window).flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """N×w²×C → N×w²×C."""
        n, tokens, dim = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, tokens, self.heads, -1).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        bias = self.attention_biases.index_select(1, self.bias_index).reshape(self.heads, tokens, tokens).to(q.dtype)
        attention = ((q @ k.transpose(-2, -1)) * self.scale + bias).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(n, tokens, dim))


class MLP(nn.Module):
    """Layer norm and two linear layers with a GELU between them, expansion 4."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim * 4)
        self.fc2 = nn.Linear(dim * 4, dim)

    def forward(self, x: Tensor) -> Tensor:
        """B×h×w×dim → B×h×w×dim."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Window attention, a depthwise 3×3 convolution, an MLP; grids that windows don't tile are padded with zeros."""

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.window = window
        self.attn = WindowAttention(dim, heads, window)
        self.local_conv = ConvBN(dim, dim, 3, groups=dim)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor) -> Tensor:
        """B×h×w×C → B×h×w×C."""
        x = x + self.attend(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)

    def attend(self, x: Tensor) -> Tensor:
        """Attend within windows: B×h×w×C → B×h×w×C."""
        b, h, w, c = x.shape
        size = self.window
        down, right = -h % size, -w % size
        if down or right:
            x = F.pad(x, (0, 0, 0, right, 0, down))
        rows, columns = (h + down) // size, (w + right) // size
        # At most four dimensions, a limit of several devices' runtimes.
        windows = x.reshape(b * rows, size, columns, size * c).transpose(1, 2).reshape(-1, size * size, c)
        windows = self.attn(windows)
        x = windows.reshape(b * rows, columns, size, size * c).transpose(1, 2).reshape(b, h + down, w + right, c)
        return x[:, :h, :w] if down or right else x


class ConvStage(nn.Module):
    """First stage: inverted bottlenecks, then half the resolution."""

    def __init__(self, dim: int, out_dim: int, depth: int):
        super().__init__()
        self.blocks = nn.Sequential(*(MBConv(dim) for _ in range(depth)))
        self.downsample = PatchMerging(dim, out_dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        """B×dim×h×w → B×out_dim×h/2×w/2."""
        return self.downsample(self.blocks(x))


class AttentionStage(nn.Module):
    """Stage of attention blocks, followed by a downsampling unless it is the last."""

    def __init__(self, dim: int, heads: int, window: int, depth: int, downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(dim, heads, window) for _ in range(depth)))
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """B×dim×h×w → the next stage's map."""
        x = self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nn.Module):
    """B×3×S×S normalised image → B×out_dim×S/16×S/16 image embedding, S a multiple of 32."""

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        dims: tuple[int, ...] = (64, 128, 160, 320),
        head_width: int = 32,
        out_dim: int = 256,
    ):
        super().__init__()
        heads, windows = [dim // head_width for dim in dims], WINDOW_SIZES
        self.patch_embed = PatchEmbed(dims[0])
        self.layers = nn.Sequential(
            ConvStage(dims[0], dims[1], depths[0]),
            AttentionStage(dims[1], heads[1], windows[1], depths[1], PatchMerging(dims[1], dims[2], 2)),
            AttentionStage(dims[2], heads[2], windows[2], depths[2], PatchMerging(dims[2], dims[3], 1)),
            AttentionStage(dims[3], heads[3], windows[3], depths[3], None),
        )
        self.neck = nn.Sequential(
            nn.Conv2d(dims[3], out_dim, 1, bias=False),
            LayerNorm2d(out_dim),
            nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False),
            LayerNorm2d(out_dim),
        )
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Return the image embeddings of normalised images."""
        return self.neck(self.layers(self.patch_embed(x)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
