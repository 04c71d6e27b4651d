"""Training batches: made from the images, a generator and nothing else, so that (seed, step) decides each of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset

from stlm_edge.data.pseudo_anomalies import make_pseudo_anomaly
from stlm_edge.data.rotation import rotated
from stlm_edge.data.scenes import scene
from stlm_edge.data.textures import Source
from stlm_edge.images import load

_CACHE_BYTES = 4 << 30


class Images(Sequence[np.ndarray]):
    """Images of a data set, decoded and resized to S×S×3 when first asked for, kept while they fit into 4 GiB."""

    def __init__(self, paths: Sequence[Path], size: int):
        self.paths, self.size = list(paths), size
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if index not in self._kept:
            image = load(self.paths[index], self.size)
            if (len(self._kept) + 1) * image.nbytes > _CACHE_BYTES:
                return image
            self._kept[index] = image
        return self._kept[index]


def views(images: Sequence[np.ndarray], source: Source, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """What the generic start learns from, count×S×S×3 uint8: crops of images in varied colour and sharpness, and
    procedural scenes, many with foreign patches in them; and foreign textures alone."""
    batch = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.1:
            batch.append(source(rng, size))
            continue
        if kind < 0.35:
            view = scene(rng, size)
        else:
            view = _crop(images[int(rng.integers(len(images)))], rng, size)
            view = _recolour(np.rot90(view, int(rng.integers(4)))[:, :: rng.choice([-1, 1])], rng)
        batch.append(make_pseudo_anomaly(view, rng, source)[0] if rng.random() < 0.5 else view)
    return np.stack(batch)


class AnomalousImages(Dataset):
    """The two-stream training's samples, by their position in the training: (seed, position) decides each of them.

    Every epoch goes through all images in an order of its own; half of the samples are pseudo-anomalous (STLM,
    section III-B). A sample: the image and the clean one that it was made from, S×S×3 uint8, and the mask, S×S
    bool.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        source: Source,
        seed: int,
        kinds: tuple[str, ...] = ("perlin",),
        rotate_as: str | None = None,
    ):
        self.images, self.source, self.seed = images, source, seed
        self.kinds, self.rotate_as = kinds, rotate_as

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epoch, place = divmod(position, len(self.images))
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.images))
        rng = np.random.default_rng([self.seed, 0, position])
        clean = np.ascontiguousarray(rotated(self.images[int(order[place])], rng, self.rotate_as))
        if rng.random() < 0.5:
            image, mask = make_pseudo_anomaly(clean, rng, self.source, self.kinds)
            return image, clean, mask
        return clean, clean, np.zeros(clean.shape[:2], bool)


def batches(
    samples: AnomalousImages, first: int, total: int, batch: int, rank: int, processes: int, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """This process's share of each step's batch, from step `first` to `total`: images, clean images and masks,
    stacked. All processes together see what one alone would."""
    share = batch // processes
    starts = (step * batch + rank * share for step in range(first, total))
    loader = DataLoader(
        samples,
        batch_sampler=(list(range(start, start + share)) for start in starts),
        num_workers=workers,
        collate_fn=_stacked,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)


def _stacked(samples: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.stack(parts) for parts in zip(*samples, strict=True))


def _crop(image: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    side = image.shape[0] * rng.uniform(0.35, 1.0)
    left, top = rng.uniform(0, image.shape[0] - side, size=2)
    whole = Image.fromarray(image)
    if rng.random() < 0.15:
        whole = whole.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))
    return np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)))


def _recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.2:  # many inspection cameras see no colour
        image = np.repeat(np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[..., None], 3, 2)
    if rng.random() < 0.5:
        return np.ascontiguousarray(image)
    gain = rng.uniform(0.7, 1.4) * rng.uniform(0.9, 1.1, size=3)
    offset = rng.uniform(-30, 30)
    curve = np.clip(np.arange(256)[:, None] * gain + offset, 0, 255).astype(np.uint8)
    return np.stack([curve[:, channel][image[..., channel]] for channel in range(3)], axis=-1)
