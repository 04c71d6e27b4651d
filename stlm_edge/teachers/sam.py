"""SAM (Kirillov et al. 2023) as the teacher: ViT-B, -L and -H of segment-anything, and MobileSAM's TinyViT.

The decoder is our own, with SAM's parameter names. Prompts, upscaling, mask and IoU heads, which STLM does not use, are
omitted.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from torch import Tensor, nn

from stlm_edge.model import ModelConfig
from stlm_edge.model.mask_decoder import MaskDecoder
from stlm_edge.model.prompt_encoder import PromptEncoder
from stlm_edge.model.stlm import PIXEL_MEAN, PIXEL_STD, PUBLISHED, STRIDE, Maps
from stlm_edge.model.tiny_vit import TinyViT
from stlm_edge.teachers import weights

NATIVE_SIZE = 1024


class Sam(nn.Module):
    """SAM without prompts: the image embedding, and the image tokens after the two-way transformer.

    The image is resized to SAM's native size, and the maps are averaged over the areas of the student's cells.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        name: str,
        image_encoder: nn.Module,
        digest: str,
        native_size: int = NATIVE_SIZE,
        config: ModelConfig = PUBLISHED,
    ):
        super().__init__()
        self.name = name
        self.description = weights.PUBLISHED[name].description
        self.digest = digest
        self.native_size = native_size
        self.image_encoder = image_encoder
        self.channels = config.decoder_dim
        self.mask_decoder = MaskDecoder(config.decoder_dim, config.decoder_mlp_dim)
        self.prompt_encoder = PromptEncoder(config.decoder_dim)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).reshape(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, image: Tensor) -> Maps:
        """Return the two maps, B×256×S/16×S/16, of B×S×S×3 uint8 images."""
        grid = image.shape[1] // STRIDE, image.shape[2] // STRIDE
        x = image.permute(0, 3, 1, 2).float()
        if x.shape[-1] != self.native_size:
            x = F.interpolate(x, (self.native_size, self.native_size), mode="bilinear", antialias=True)
        embedding = self.image_encoder((x - self.pixel_mean) / self.pixel_std)
        prompts = self.prompt_encoder
        tokens = self.mask_decoder(embedding, prompts.pe_layer(*embedding.shape[-2:]), prompts.no_mask_embed.weight)
        return _area_resized(embedding, grid), _area_resized(tokens, grid)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights from a published file's tensors."""
        names = [name for name in self.state_dict() if not name.endswith("num_batches_tracked")]
        self.load_state_dict({name: tensors[name].float() for name in names}, strict=False, assign=True)
        self.requires_grad_(False)


def open_sam(name: str, path: Path, published: weights.Weights) -> Sam:
    """Return SAM with a published file's weights. Raises UsageError for a file that is not the published one."""
    sam = Sam(name, make_encoder(name), published.sha256)
    sam.fill(weights.read(path, published))
    return sam


def make_encoder(name: str) -> nn.Module:
    """Return an image encoder without weights: B×3×1024×1024 → B×256×64×64."""
    if name == "vit_t":
        return TinyViT()
    with torch.device("meta"):  # random weights for 636M parameters would take longer than reading the file
        return sam_model_registry[name]().image_encoder


def _area_resized(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    return maps.float() if maps.shape[-2:] == grid else F.interpolate(maps.float(), grid, mode="area")
