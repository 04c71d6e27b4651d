"""STLM (arXiv 2402.19145): two streams, one decoder, feature aggregation."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stlm_edge.model.feature_aggregation import FeatureAggregation
from stlm_edge.model.mask_decoder import HEADS, MaskDecoder
from stlm_edge.model.prompt_encoder import PromptEncoder
from stlm_edge.model.tiny_vit import TinyViT

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
SCORE_PIXELS = 100
STRIDE = 16


def _expect_multiple(field: str, value: int, step: int, maximum: int) -> None:
    if not (step <= value <= maximum and value % step == 0):
        raise ValueError(f"{field} {value}: expected a multiple of {step} between {step} and {maximum}")


@dataclass(frozen=True)
class ModelConfig:
    """Input size, depth and widths of the network; the defaults are the published ones.

    Raises ValueError for a value out of range.
    """

    size: int = 224
    """Side of the square image in pixels."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each of the encoders' four stages."""
    embed_dims: tuple[int, ...] = (64, 128, 160, 320)
    """Channels of each stage."""
    head_width: int = 32
    """Channels of one attention head of the encoders."""
    decoder_dim: int = 256
    """Channels of the image embedding and of the mask decoder."""
    decoder_mlp_dim: int = 2048
    fa_dim: int = 128
    """Channels of feature aggregation."""

    def __post_init__(self) -> None:
        _expect_multiple("size", self.size, 32, 4096)
        if len(self.depths) != 4 or not all(1 <= depth <= 24 for depth in self.depths):
            raise ValueError(f"depths {self.depths}: expected four integers between 1 and 24")
        if len(self.embed_dims) != 4:
            raise ValueError(f"embed_dims {self.embed_dims}: expected four integers")
        _expect_multiple("head_width", self.head_width, 1, 256)
        _expect_multiple("embed_dims", self.embed_dims[0], 2, 1024)
        for dim in self.embed_dims[1:]:
            _expect_multiple("embed_dims", dim, self.head_width, 1024)
        _expect_multiple("decoder_dim", self.decoder_dim, 2 * HEADS, 1024)
        _expect_multiple("decoder_mlp_dim", self.decoder_mlp_dim, 1, 8192)
        _expect_multiple("fa_dim", self.fa_dim, 1, 1024)


PUBLISHED = ModelConfig()

Maps = tuple[Tensor, Tensor]
"""A stream's two maps, B×256×h×w each: the image embedding, and the image tokens after the transformer."""


class Outputs(NamedTuple):
    """Outputs of the network: anomaly map, B×1×S×S, and score, B."""

    anomaly_map: Tensor
    score: Tensor


class STLM(nn.Module):
    """The whole network: two encoders, the shared decoder and feature aggregation."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.plain = TinyViT(config.depths, config.embed_dims, config.head_width, config.decoder_dim)
        self.denoising = TinyViT(config.depths, config.embed_dims, config.head_width, config.decoder_dim)
        self.mask_decoder = MaskDecoder(config.decoder_dim, config.decoder_mlp_dim)
        self.prompt_encoder = PromptEncoder(config.decoder_dim)
        self.fa = FeatureAggregation(config.decoder_dim, config.fa_dim)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Outputs:
        """Return anomaly maps and scores of images.

        `image`: B×S×S×3 (or B×3×S×S) uint8 RGB. Map values are in [0, 1]; a score is the mean of the map's 100 highest
        values.
        """
        grid_map = self.fa(*self.streams(self.normalise(image))).float().sigmoid()
        anomaly_map = F.interpolate(grid_map, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
        return Outputs(anomaly_map, score(anomaly_map))

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
