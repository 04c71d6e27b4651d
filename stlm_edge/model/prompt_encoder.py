"""The parts of SAM's prompt encoder that are used without prompts: positional encoding and no-mask embedding."""

import math

import torch
from torch import Tensor, nn


class RandomPositionalEncoding(nn.Module):
    """Sines and cosines of random spatial frequencies (Tancik et al. 2020), as SAM uses them."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, dim // 2))

    def forward(self, height: int, width: int) -> Tensor:
        """Return the encoding of each cell's centre, row by row, 1×hw×dim."""
        matrix = self.positional_encoding_gaussian_matrix
        y = (torch.arange(height, device=matrix.device, dtype=matrix.dtype) + 0.5) / height
        x = (torch.arange(width, device=matrix.device, dtype=matrix.dtype) + 0.5) / width
        centres = torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)
        angles = 2 * math.pi * ((2 * centres - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)[None]


class PromptEncoder(nn.Module):
    """Parameters of SAM's prompt encoder that are used without prompts."""

    def __init__(self, dim: int = 256) -> None:
        super().__init__()
        self.pe_layer = RandomPositionalEncoding(dim)
        self.no_mask_embed = nn.Embedding(1, dim)
