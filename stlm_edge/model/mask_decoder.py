"""SAM's mask decoder (Kirillov et al. 2023) as far as STLM uses it: its tokens and its two-way transformer.

Parameter names are segment-anything's. `final_attn_token_to_image` and `norm_final_attn` cannot reach the image tokens;
they stand here for the checkpoint's sake and never run.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM = 256
HEADS = 8
MLP_DIM = 2048
MASK_TOKENS = 4


class Attention(nn.Module):
    """Multi-head attention whose inner width is `DIM / downsample`."""

    def __init__(self, downsample: int = 1):
        super().__init__()
        inner = DIM // downsample
        self.q_proj = nn.Linear(DIM, inner)
        self.k_proj = nn.Linear(DIM, inner)
        self.v_proj = nn.Linear(DIM, inner)
        self.out_proj = nn.Linear(inner, DIM)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """B×n×256, B×m×256, B×m×256 → B×n×256."""
        b, n, _ = q.shape
        q, k, v = (
            projection(x).reshape(b, x.shape[1], HEADS, -1).transpose(1, 2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        attention = ((q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.out_proj((attention @ v).transpose(1, 2).reshape(b, n, -1))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(DIM, MLP_DIM)
        self.lin2 = nn.Linear(MLP_DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image; then the image attends to the tokens."""

    def __init__(self, first: bool):
        super().__init__()
        self.first = first
        self.self_attn = Attention()
        self.norm1 = nn.LayerNorm(DIM)
        self.cross_attn_token_to_image = Attention(downsample=2)
        self.norm2 = nn.LayerNorm(DIM)
        self.mlp = MLP()
        self.norm3 = nn.LayerNorm(DIM)
        self.norm4 = nn.LayerNorm(DIM)
        self.cross_attn_image_to_token = Attention(downsample=2)

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
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
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([TwoWayBlock(first=True), TwoWayBlock(first=False)])
        self.final_attn_token_to_image = Attention(downsample=2)
        self.norm_final_attn = nn.LayerNorm(DIM)

    def forward(self, tokens: Tensor, image: Tensor, image_pe: Tensor) -> Tensor:
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        return image


class MaskDecoder(nn.Module):
    """B×256×h×w image embedding → B×256×h×w image tokens after the two-way transformer, without any prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer()
        self.iou_token = nn.Embedding(1, DIM)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, DIM)

    def forward(self, embedding: Tensor, image_pe: Tensor, no_mask: Tensor) -> Tensor:
        """`image_pe` is 1×hw×256, `no_mask` 1×256."""
        b, c, h, w = embedding.shape
        image = embedding.flatten(2).transpose(1, 2) + no_mask
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(b, -1, -1)
        image = self.transformer(tokens, image, image_pe)
        return image.transpose(1, 2).reshape(b, c, h, w)
