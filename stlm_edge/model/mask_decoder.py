"""The parts of SAM's mask decoder (Kirillov et al. 2023) that STLM uses: tokens and two-way transformer.

Parameter names are segment-anything's. `final_attn_token_to_image` and `norm_final_attn` do not affect the image
tokens; they never run and exist only so that published weights load.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 8
MASK_TOKENS = 4


class Attention(nn.Module):
    """Multi-head attention whose inner width is `dim / downsample`."""

    def __init__(self, dim: int, downsample: int = 1):
        super().__init__()
        inner = dim // downsample
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from n queries to m keys: B×n×dim, B×m×dim, B×m×dim → B×n×dim."""
        b, n, _ = q.shape
        q, k, v = (
            projection(x).reshape(b, x.shape[1], HEADS, -1).transpose(1, 2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        attention = ((q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.out_proj((attention @ v).transpose(1, 2).reshape(b, n, -1))


class MLP(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """B×n×dim → B×n×dim."""
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image; then the image attends to the tokens."""

    def __init__(self, dim: int, mlp_dim: int, first: bool):
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, downsample=2)

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Return new tokens, B×5×dim, and image, B×hw×dim; `*_pe` are their positional encodings."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, image + image_pe, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image + image_pe, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Two blocks of attention in both directions between tokens and image."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([TwoWayBlock(dim, mlp_dim, first=first) for first in (True, False)])
        self.final_attn_token_to_image = Attention(dim, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, image: Tensor, image_pe: Tensor) -> Tensor:
        """Return the image tokens, B×hw×dim, after both blocks."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        return image


class MaskDecoder(nn.Module):
    """B×dim×h×w image embedding → B×dim×h×w image tokens after the two-way transformer, without any prompt."""

    def __init__(self, dim: int = 256, mlp_dim: int = 2048) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(dim, mlp_dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, dim)

    def forward(self, embedding: Tensor, image_pe: Tensor, no_mask: Tensor) -> Tensor:
        """Run the transformer; `image_pe` is 1×hw×dim, `no_mask` 1×dim."""
        b, c, h, w = embedding.shape
        image = embedding.flatten(2).transpose(1, 2) + no_mask
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(b, -1, -1)
        image = self.transformer(tokens, image, image_pe)
        return image.transpose(1, 2).reshape(b, c, h, w)
