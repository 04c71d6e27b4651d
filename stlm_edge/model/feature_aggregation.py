"""Feature aggregation (FA) of the two streams' differences into the anomaly map (STLM, section III-D).

Parameter names are those of the published segmentation network.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OFFSET, SLOPE, PRIOR = 3.0, 0.5, -4.0
"""Initial map: offset of the distance in standard deviations, logits per deviation, logit of the mean distance."""


class ResidualBlock(nn.Module):
    """ResNet's basic block."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, out_dim, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_dim)
        self.downsample = None
        if in_dim != out_dim:
            self.downsample = nn.Sequential(nn.Conv2d(in_dim, out_dim, 1, bias=False), nn.BatchNorm2d(out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """B×in_dim×h×w → B×out_dim×h×w."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ConvNormAct(nn.Module):
    """Convolution, batch norm and ReLU."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, dilation: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """B×in_dim×h×w → B×out_dim×h×w."""
        return F.relu(self.norm(self.conv(x)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the global mean and dilations 1 and 3, fused by a 3×3 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.aspp_feature_extractors = nn.ModuleList(
            [
                nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(dim, dim, 1)),
                ConvNormAct(dim, dim, 1),
                ConvNormAct(dim, dim, 3, dilation=3),
            ]
        )
        self.aspp_fusion_layer = ConvNormAct(3 * dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """B×dim×h×w → B×dim×h×w."""
        pooled, near, far = (extract(x) for extract in self.aspp_feature_extractors)
        # Broadcast by a sum: TFLite's interpreter cannot allocate an expanded 1×1 map.
        return self.aspp_fusion_layer(torch.cat([pooled + torch.zeros_like(near), near, far], dim=1))


class FeatureAggregation(nn.Module):
    """Two maps per stream, B×in_dim×h×w → logits of the anomaly map, B×1×h×w."""

    def __init__(self, in_dim: int = 256, dim: int = 128):
        super().__init__()
        self.in_dim = in_dim
        self.res: Any = nn.Sequential(ResidualBlock(2 * in_dim, dim), ResidualBlock(dim, dim))
        self.head: Any = nn.Sequential(
            ASPP(dim),
            nn.Conv2d(dim, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, 1, 1),
        )

    @torch.no_grad()
    def initialise_from_cosines(self) -> None:
        """Initialise the map to 1 − cos(plain_1, denoising_1), standardised, with a low prior.

        One channel carries the cosine distance of the image embeddings (k=1), which short trainings distil better than
        the image tokens (benchmarks/results, `ablation.json`), through the network. Every batch norm adds three
        standard deviations to it so that no ReLU clips it; the other channels do not reach the output. The slope is
        low because a steep sigmoid would flatten the map's peaks before upsampling. Random filters need thousands of
        training steps to learn this distance, whose variation is a hundredth of that of the single products.
        """
        near, fusion = self.head[0].aspp_feature_extractors[1], self.head[0].aspp_fusion_layer
        _carry(self.res[0].downsample[0], slice(self.in_dim))
        for block in self.res:
            block.conv2.weight[0] = 0
        _carry(near.conv, 0)
        _carry(fusion.conv, near.conv.out_channels)
        _carry(self.head[1], 0)
        for norm in (self.res[0].downsample[1], near.norm, fusion.norm, self.head[2]):
            norm.bias[0] = OFFSET
        self.head[-1].weight.zero_()
        self.head[-1].weight[0, 0] = SLOPE
        self.head[-1].bias.fill_(PRIOR - OFFSET * SLOPE)

    def forward(self, plain: tuple[Tensor, ...], denoising: tuple[Tensor, ...]) -> Tensor:
        """Aggregate the negated products of the streams' normalised maps."""
        products = [-F.normalize(p, dim=1) * F.normalize(d, dim=1) for p, d in zip(plain, denoising, strict=True)]
        return self.head(self.res(torch.cat(products, dim=1)))


def _carry(convolution: nn.Conv2d, source: int | slice) -> None:
    """Set the first output channel to the sum of the input channels `source` at the same position."""
    centre = convolution.kernel_size[0] // 2
    convolution.weight[0] = 0
    convolution.weight[0, source, centre, centre] = 1
