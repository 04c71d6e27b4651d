"""STLM (arXiv 2402.19145): two streams, one decoder, feature aggregation."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stlm_edge.model.feature_aggregation import FeatureAggregation
from stlm_edge.model.mask_decoder import MaskDecoder
from stlm_edge.model.prompt_encoder import PromptEncoder
from stlm_edge.model.tiny_vit import TinyViT

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
SCORE_PIXELS = 100
STRIDE = 16


@dataclass(frozen=True)
class ModelConfig:
    """What rebuilds the network: the image's side in pixels, and the encoders' blocks per stage."""

    size: int = 224
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)

    def __post_init__(self) -> None:
        if not (isinstance(self.size, int) and 32 <= self.size <= 4096 and self.size % 32 == 0):
            raise ValueError(f"size {self.size}: expected a multiple of 32 between 32 and 4096, such as 224 or 448")
        if len(self.depths) != 4 or not all(isinstance(d, int) and 1 <= d <= 24 for d in self.depths):
            raise ValueError(f"depths {self.depths}: expected four whole numbers between 1 and 24")


Maps = tuple[Tensor, Tensor]
"""A stream's two maps, B×256×h×w each: the image embedding, and the image tokens after the transformer."""


class Answer(NamedTuple):
    anomaly_map: Tensor
    score: Tensor


class STLM(nn.Module):
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.plain = TinyViT(config.depths)
        self.denoising = TinyViT(config.depths)
        self.mask_decoder = MaskDecoder()
        self.prompt_encoder = PromptEncoder()
        self.fa = FeatureAggregation()
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Answer:
        """Judge images.

        `image`: B×S×S×3 (or B×3×S×S) uint8 RGB. Gives the anomaly map, B×1×S×S in [0, 1], and the score, B: the mean
        of the map's 100 highest values.
        """
        grid_map = self.fa(*self.streams(self.normalise(image))).float().sigmoid()
        anomaly_map = F.interpolate(grid_map, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
        return Answer(anomaly_map, score(anomaly_map))

    def normalise(self, image: Tensor) -> Tensor:
        """B×S×S×3 or B×3×S×S uint8 → B×3×S×S float, with SAM's pixel mean and deviation."""
        if image.shape[-1] == 3:
            image = image.permute(0, 3, 1, 2)
        return (image.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std

    def streams(self, x: Tensor) -> tuple[Maps, Maps]:
        """B×3×S×S normalised images → the plain and the denoising stream's maps."""
        plain, denoising = self.plain(x), self.denoising(x)
        return (plain, self.decode(plain)), (denoising, self.decode(denoising))

    def decode(self, embedding: Tensor) -> Tensor:
        """Image embedding → image tokens after the transformer, both B×256×h×w."""
        h, w = embedding.shape[-2:]
        prompts = self.prompt_encoder
        return self.mask_decoder(embedding, prompts.pe_layer(h, w), prompts.no_mask_embed.weight)


def score(anomaly_map: Tensor) -> Tensor:
    """B×1×S×S map → B scores: the mean of the 100 highest values (STLM, section IV-A)."""
    return anomaly_map.flatten(1).topk(SCORE_PIXELS, dim=1).values.mean(dim=1)


def tlm_map(plain: Maps, denoising: Maps) -> Tensor:
    """The anomaly map without FA, B×1×h×w: Π_k (1 − cos(plain_k, denoising_k))."""
    distances = [1 - F.cosine_similarity(p, d, dim=1) for p, d in zip(plain, denoising, strict=True)]
    return torch.stack(distances).prod(dim=0)[:, None]
