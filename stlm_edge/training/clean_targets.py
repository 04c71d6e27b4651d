"""What the denoising stream is to say of clean images, each computed once."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stlm_edge.model import STLM
from stlm_edge.model.stlm import Maps

CACHED_BYTES = 4 << 30


class PlainStream:
    """A frozen plain stream as the denoising one's teacher: on normal images the two then agree by construction, and
    what the plain stream failed to learn of SAM's or the stand-in's features is no difference between them."""

    def __init__(self, model: STLM):
        self.model = model

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Maps:
        embedding = self.model.plain(self.model.normalise(image))
        return embedding, self.model.decode(embedding)


class CleanTargets:
    """The answers to clean images, kept in float16 while they fit into 4 GiB.

    One image at a time: a resumed run, whose memory is empty, thus gets the very same numbers. `answer` gives the
    maps, 1×256×h×w twice, of one image, uint8 S×S×3. Where images are turned at random, none comes twice:
    don't `keep`.
    """

    def __init__(self, answer: Callable[[np.ndarray], Maps], keep: bool = True):
        self.answer, self.limit = answer, CACHED_BYTES if keep else 0
        self._kept: dict[bytes, Maps] = {}
        self._bytes = 0

    def __call__(self, images: Sequence[np.ndarray], device: torch.device) -> Maps:
        """B images, uint8 S×S×3 → two maps B×256×h×w, float32 on the device."""
        first, second = zip(*(self._of(image) for image in images), strict=True)
        return torch.cat(first).to(device).float(), torch.cat(second).to(device).float()

    def _of(self, image: np.ndarray) -> Maps:
        key = hashlib.sha256(np.ascontiguousarray(image)).digest()
        if key in self._kept:
            return self._kept[key]
        first, second = self.answer(image)
        maps = first.half().cpu(), second.half().cpu()
        size = sum(m.numel() * m.element_size() for m in maps)
        if self._bytes + size <= self.limit:
            self._kept[key] = maps
            self._bytes += size
        return maps


def seen_targets(teacher: Callable[[Tensor], Maps], image: Tensor, mask: Tensor, clean: Maps) -> Maps:
    """The teacher's maps of `image`, B×S×S×3 uint8, where those of the clean images are known: it is asked only about
    images that have something in their mask, B×S×S bool."""
    changed = mask.flatten(1).any(1)
    first, second = (maps.clone() for maps in clean)
    if changed.any():
        first[changed], second[changed] = (maps.to(first.dtype) for maps in teacher(image[changed]))
    return first, second
