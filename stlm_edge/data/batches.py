"""Training batches, determined by the images, the seed and the step."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from stlm_edge.data.pseudo_anomalies import make_pseudo_anomaly
from stlm_edge.data.rotation import rotated
from stlm_edge.data.textures import Source
from stlm_edge.images import load

_CACHE_BYTES = 4 << 30


class Images(Sequence[np.ndarray]):
    """Images of a data set, decoded and resized to S×S×3 on first access and cached up to 4 GiB."""

    def __init__(self, paths: Sequence[Path], size: int):
        self.paths, self.size = list(paths), size
        self._cached: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if index not in self._cached:
            image = load(self.paths[index], self.size)
            if (len(self._cached) + 1) * image.nbytes > _CACHE_BYTES:
                return image
            self._cached[index] = image
        return self._cached[index]


class AnomalousImages(Dataset):
    """Samples of the two-stream training, each determined by the seed and its position in the training.

    Every epoch shuffles all images; half of the samples are pseudo-anomalous (STLM, section III-B). A sample is an
    image and its clean original, S×S×3 uint8, and the mask, S×S bool.
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
    """Yield this process's share of each step's batch from step `first` to `total`.

    Images, clean images and masks are stacked. The samples do not depend on the number of processes.
    """
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
