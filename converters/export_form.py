"""Rewriting of the network before export: the same function with fewer and larger operations.

What does not depend on the image is computed beforehand, in float64. Tokens are matrices, so that a linear layer is one
matrix product; the decoder processes both streams as one batch of two, and multiplies the side of its few tokens first:
(X W) kᵀ equals X (W kᵀ). Parameters keep their paths in the model. `benchmarks/graph.py` measures the effect.
"""

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stlm_edge.model import STLM
from stlm_edge.model.feature_aggregation import FeatureAggregation
from stlm_edge.model.mask_decoder import HEADS, Attention, MaskDecoder, TwoWayBlock
from stlm_edge.model.stlm import STRIDE, Outputs, score
from stlm_edge.model.tiny_vit import AttentionStage, Block, TinyViT, WindowAttention


def fold_batch_norms(model: STLM) -> STLM:
    """Return a copy whose batch norms are merged into the convolutions before them."""
    copied = copy.deepcopy(model).eval()
    for parent in list(copied.modules()):
        for (name, convolution), (following, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, following, nn.Identity())
    return copied


@torch.no_grad()
def export_form(model: STLM) -> nn.Module:
    """Return a copy for one image, 1×S×S×3 with values 0 to 255, whose map differs from the model's by rounding."""
    return _Network(fold_batch_norms(model)).eval()


class _Network(nn.Module):
    pixel_mean: Tensor

    def __init__(self, model: STLM) -> None:
        super().__init__()
        self.grid = model.config.size // STRIDE
        for encoder in (model.plain, model.denoising):
            first: Any = encoder.patch_embed.seq[0]
            first.c.weight.div_(model.pixel_std)
        self.plain = _Encoder(model.plain, model.config.size)
        self.denoising = _Encoder(model.denoising, model.config.size)
        prompts = model.prompt_encoder
        encoding = prompts.pe_layer.double()(self.grid, self.grid)
        self.mask_decoder = _Decoder(model.mask_decoder, encoding, prompts.no_mask_embed.weight)
        self.fa = _FeatureAggregation(model.fa, self.grid)
        self.register_buffer("pixel_mean", model.pixel_mean)

    def forward(self, image: Tensor) -> Outputs:
        x = image.permute(0, 3, 1, 2).to(self.pixel_mean.dtype) - self.pixel_mean
        embeddings = torch.stack([self.plain(x), self.denoising(x)])
        logits = self.fa(embeddings, self.mask_decoder(embeddings))
        # Of a vector: after a map's sigmoid, onnxruntime would resize 16 channels of which 15 are padding.
        grid_map = logits.flatten().sigmoid().reshape(1, 1, self.grid, self.grid)
        anomaly_map = F.interpolate(grid_map, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
        return Outputs(anomaly_map, score(anomaly_map))


class _Encoder(nn.Module):
    """Encoder, 1×3×S×S → n×256, the image's cells row by row."""

    def __init__(self, encoder: TinyViT, size: int) -> None:
        super().__init__()
        self.patch_embed = encoder.patch_embed
        self.layers = nn.Sequential()
        stage: Any
        for index, stage in enumerate(encoder.layers):
            grid = size // (4, 8, 16, 16)[index]
            self.layers.append(_Stage(stage, grid) if isinstance(stage, AttentionStage) else stage)
        self.neck: Any = nn.ModuleList(encoder.neck)

    def forward(self, x: Tensor) -> Tensor:
        reduce, norm, mix, last_norm = self.neck
        x = reduce(self.layers(self.patch_embed(x)))
        x = F.layer_norm(x.permute(0, 2, 3, 1), norm.weight.shape, norm.weight, norm.bias, norm.eps).permute(0, 3, 1, 2)
        x = mix(x).permute(0, 2, 3, 1).reshape(-1, mix.out_channels)
        return F.layer_norm(x, last_norm.weight.shape, last_norm.weight, last_norm.bias, last_norm.eps)


class _Stage(nn.Module):
    def __init__(self, stage: AttentionStage, grid: int) -> None:
        super().__init__()
        blocks: Any = stage.blocks
        self.blocks = nn.Sequential(*(_Block(block, grid) for block in blocks))
        self.downsample = stage.downsample

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        x = self.blocks(x.permute(0, 2, 3, 1).reshape(h * w, c))
        x = x.reshape(1, h, w, c).permute(0, 3, 1, 2)
        return x if self.downsample is None else self.downsample(x)


class _Block(nn.Module):
    """Attention block, hw×C → hw×C."""

    def __init__(self, block: Block, grid: int) -> None:
        super().__init__()
        self.grid, self.window = grid, block.window
        self.attn = _WindowAttention(block.attn)
        self.local_conv = block.local_conv
        self.mlp = block.mlp

    def forward(self, x: Tensor) -> Tensor:
        grid, c = self.grid, x.shape[-1]
        x = x + self.attend(x)
        x = self.local_conv(x.reshape(1, grid, grid, c).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(-1, c)
        return x + self.mlp(x)

    def attend(self, x: Tensor) -> Tensor:
        grid, size, c = self.grid, self.window, x.shape[-1]
        if grid == size:
            return self.attn(x, size * size)
        missing = -grid % size
        if missing:
            x = F.pad(x.reshape(1, grid, grid, c), (0, 0, 0, missing, 0, missing))
        side = grid + missing
        windows = side // size
        x = x.reshape(windows, size, windows, size * c).transpose(1, 2).reshape(-1, c)
        x = self.attn(x, size * size).reshape(windows, windows, size, size * c).transpose(1, 2)
        if missing:
            x = x.reshape(1, side, side, c)[:, :grid, :grid]
        return x.reshape(-1, c)


class _WindowAttention(nn.Module):
    bias: Tensor

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.heads = heads = attention.heads
        self.norm, self.qkv, self.proj = attention.norm, attention.qkv, attention.proj
        for parameter in self.qkv.parameters():  # from rows by head, then q, k, v, to rows by q, k, v, then head
            rows = parameter.data.unflatten(0, (heads, 3, -1)).transpose(0, 1).clone()
            rows[0] *= attention.scale
            parameter.data = rows.flatten(0, 2)
        tokens = attention.attention_biases.shape[1]
        bias = attention.attention_biases[:, attention.bias_index].reshape(heads, tokens, tokens)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, tokens: int) -> Tensor:
        """Attend within consecutive windows, Nw²×C → Nw²×C."""
        heads, c = self.heads, x.shape[-1]
        qkv = self.qkv(self.norm(x)).reshape(-1, tokens, 3 * heads, c // heads)
        q, k, v = qkv.split(heads, dim=2)
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + self.bias
        v = scores.softmax(dim=-1) @ v.transpose(1, 2)
        return self.proj(v.transpose(1, 2).reshape(-1, c))


class _Decoder(nn.Module):
    """Mask decoder, 2×n×256 image embeddings → image tokens after the two-way transformer."""

    no_mask: Tensor
    encoding: Tensor

    def __init__(self, decoder: MaskDecoder, encoding: Tensor, no_mask: Tensor) -> None:
        super().__init__()
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).double()
        self.register_buffer("no_mask", no_mask.detach())
        self.register_buffer("encoding", encoding[0].float())
        self.transformer: Any = nn.Module()
        layers: Any = decoder.transformer.layers
        self.transformer.layers = nn.ModuleList(_TwoWayBlock(layer, tokens) for layer in layers)

    def forward(self, embeddings: Tensor) -> Tensor:
        image, tokens = embeddings + self.no_mask, None
        for layer in self.transformer.layers:
            image, tokens = layer(image, image + self.encoding, tokens)
        return image


class _TwoWayBlock(nn.Module):
    """Two-way block: the image without and with its encoding, 2×n×256 each, and tokens, 10×256 → image and tokens.

    In the first block, tokens are constants until they attend to the image, so it takes no tokens.
    """

    token_encoding: Tensor
    first_tokens: Tensor
    first_queries: Tensor

    def __init__(self, block: TwoWayBlock, tokens: Tensor) -> None:
        super().__init__()
        self.first = block.first
        self.cross_attn_token_to_image = _TokensToImage(block.cross_attn_token_to_image)
        self.cross_attn_image_to_token = _ImageToTokens(block.cross_attn_image_to_token)
        self.norm2, self.norm3, self.norm4, self.mlp = block.norm2, block.norm3, block.norm4, block.mlp
        self.register_buffer("token_encoding", tokens.float().repeat(2, 1))
        if block.first:
            exact = copy.deepcopy(block).double()
            first = exact.norm1(exact.self_attn(*[tokens[None]] * 3))[0]
            attention = copy.deepcopy(self.cross_attn_token_to_image).double()
            self.register_buffer("first_tokens", first.float().repeat(2, 1))
            self.register_buffer("first_queries", attention.queries(first + tokens).float())
        else:
            self.self_attn, self.norm1 = _SelfAttention(block.self_attn), block.norm1

    def forward(self, image: Tensor, encoded: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        to_image, to_tokens = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        if tokens is None:
            tokens, queries = self.first_tokens, self.first_queries
        else:
            tokens = self.norm1(tokens + self.self_attn(tokens + self.token_encoding, tokens))
            queries = to_image.queries(tokens + self.token_encoding)
        tokens = self.norm2(tokens + to_image(queries, encoded, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        attended = to_tokens(encoded, tokens + self.token_encoding, tokens)
        # Of matrices: otherwise onnxruntime fuses sum and norm into an operator that is four times as slow as both.
        image = self.norm4(image.flatten(0, 1) + attended.flatten(0, 1)).reshape(image.shape)
        return image, tokens


class _SelfAttention(nn.Module):
    """Self-attention of tokens, B5×256 with and without encoding → B5×256."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.out_proj = attention.v_proj, attention.out_proj
        for parameter in self.q_proj.parameters():
            parameter.data = parameter.data / (self.q_proj.out_features // HEADS) ** 0.5

    def forward(self, encoded: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = _by_head(self.q_proj(encoded)), _by_head(self.k_proj(encoded)), _by_head(self.v_proj(tokens))
        attention = (q @ k.transpose(2, 3)).softmax(dim=-1)
        return self.out_proj((attention @ v).transpose(1, 2).reshape(tokens.shape))


def _by_head(x: Tensor) -> Tensor:
    """Split the tokens' channels into heads, B5×C → B×8×5×C/8."""
    return x.reshape(-1, 5, HEADS, x.shape[-1] // HEADS).transpose(1, 2)


class _TokensToImage(nn.Module):
    """Attention from tokens to the image's cells."""

    keys: Tensor
    values: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        exact = copy.deepcopy(attention).double()
        self.dim = attention.q_proj.in_features
        self.q_proj, self.out_proj = attention.q_proj, attention.out_proj
        keys = exact.k_proj.weight.unflatten(0, (HEADS, -1))
        self.register_buffer("keys", (keys / keys.shape[1] ** 0.5).float())
        self.register_buffer("values", exact.v_proj.weight.unflatten(0, (HEADS, -1)).transpose(1, 2).float())
        bias = exact.out_proj.bias + exact.out_proj.weight @ exact.v_proj.bias
        self.out_proj.bias.data = bias.float()

    def queries(self, tokens: Tensor) -> Tensor:
        """Return the queries that are multiplied with the image's cells, B5×256 → B×40×256, head by head."""
        return (_by_head(self.q_proj(tokens)) @ self.keys).reshape(-1, HEADS * 5, self.dim)

    def forward(self, queries: Tensor, encoded: Tensor, image: Tensor) -> Tensor:
        attention = (queries @ encoded.transpose(1, 2)).softmax(dim=-1)
        attended = (attention @ image).reshape(-1, HEADS, 5, self.dim) @ self.values
        return self.out_proj(attended.transpose(1, 2).reshape(-1, self.out_proj.in_features))


class _ImageToTokens(nn.Module):
    """Attention from the image's cells to tokens."""

    queries: Tensor
    queries_bias: Tensor
    out: Tensor
    out_bias: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        exact = copy.deepcopy(attention).double()
        self.dim = attention.q_proj.in_features
        self.k_proj, self.v_proj = attention.k_proj, attention.v_proj
        queries = exact.q_proj.weight.unflatten(0, (HEADS, -1))
        scale = queries.shape[1] ** -0.5
        self.register_buffer("queries", (queries * scale).float())
        self.register_buffer("queries_bias", (exact.q_proj.bias.reshape(HEADS, -1, 1) * scale).float())
        self.register_buffer("out", exact.out_proj.weight.T.unflatten(0, (HEADS, -1)).float())
        self.register_buffer("out_bias", (exact.out_proj.bias / HEADS).float())  # each head's weights sum to 1

    def forward(self, encoded: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        k, v = _by_head(self.k_proj(keys)), _by_head(self.v_proj(values))
        keys = (k @ self.queries).reshape(-1, HEADS * 5, self.dim)
        bias = (k @ self.queries_bias).reshape(-1, 1, HEADS * 5)
        values = (v @ self.out + self.out_bias).reshape(-1, HEADS * 5, self.dim)
        scores = encoded @ keys.transpose(1, 2) + bias
        attention = scores.reshape(2, -1, HEADS, 5).softmax(dim=-1).reshape(scores.shape)
        return attention @ values


class _FeatureAggregation(nn.Module):
    """Feature aggregation: image embeddings and tokens, 2×n×256 each → logits 1×1×h×w."""

    def __init__(self, fa: FeatureAggregation, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.res, self.head = fa.res, fa.head
        for convolution in (fa.res[0].conv1, fa.res[0].downsample[0]):
            convolution.weight.neg_()  # the model's take the negated products

    def forward(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        products = []
        for maps in (embeddings, tokens):
            plain, denoising = maps / maps.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            products.append(plain * denoising)
        x = torch.cat(products, dim=-1).reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        return self.head(self.res(x))
