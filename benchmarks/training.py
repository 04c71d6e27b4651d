"""Time a training step of the recipe `paper` against one as the published code does it, side by side on this CPU.

    python benchmarks/training.py --out benchmarks/results/training.json

S=1024, batch 2, float32, one thread; teacher and encoders are MobileSAM's TinyViT with random weights (seed 0), which
do not affect speed. The published step is tests/plain_training.py: the teacher runs on both the pseudo-anomalous and
the clean images (without gradients), the decoder takes one image after the other. The package's savings are then added
one after the other, to show the share of each. As in training, half of the batch is pseudo-anomalous. MKL's matrix
products, which the published step uses and the last saving replaces, are slow on AMD's processors: there the ratio is
larger than on Intel's.

The variants take turns (A B C A B C …), so that a busy machine slows them alike. Each runs in a process of its own,
whose third step counts, in CPU time; a ratio is the median of the ratios within each turn. Peak memory is the resident
set of these processes.

Where images are rotated at random (ten of MVTec AD's categories), no clean image occurs twice, and the teacher runs on
all clean and all pseudo-anomalous images: a row of its own, with every saving but the first. The images per second of
the data pipeline are those of one process, all of them pseudo-anomalous: rotation, Perlin noise, texture, blending at
448.

Exits 1 when a bound is broken: speed, losses, memory or images per second.
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from time import process_time
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import plain_training
import torch
from torch import Tensor

from stlm_edge.bench.machine import system
from stlm_edge.data.pseudo_anomalies import KINDS, make_pseudo_anomaly
from stlm_edge.data.rotation import rotated
from stlm_edge.data.textures import any_of, patches_of, procedural
from stlm_edge.errors import exit_with_one_line
from stlm_edge.files import write_text
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.model.tiny_vit import TinyViT
from stlm_edge.teachers.sam import Sam
from stlm_edge.training.allocator import keep_freed_memory, return_freed_memory
from stlm_edge.training.onednn import ByOneDNN
from stlm_edge.training.recipes import RECIPES
from stlm_edge.training.step import CleanTargets, TrainingStep, freeze, image_targets, make_optimisers

PAPER = RECIPES["paper"]
PUBLISHED, OURS, TURNED = "as published", "matrix products by oneDNN", "the same with rotated images"
TOGETHER = "norm, GELU and convolution fused"
PIPELINE_SIZE = 448
GOALS = {"speed": 1.5, "loss_difference": 1e-5, "memory": 1.0, "images_per_second": 100.0}
PACKAGES = ("stlm-edge", "torch", "numpy", "pillow")


class Training:
    """A network, its optimisers, a teacher and one batch; each variant's `step` works on its own copy of them."""

    def __init__(self, size: int):
        torch.manual_seed(0)
        self.model = STLM(ModelConfig(size)).train()
        self.teacher = Sam("vit_t", TinyViT(), digest="random", native_size=size)
        freeze(self.model, PAPER)
        self.published_optimisers = plain_training.optimisers_of(self.model)
        self.step, self.optimisers = TrainingStep(self.model, PAPER).train(), make_optimisers(self.model, PAPER)
        self.clean_targets = CleanTargets(lambda image: self.teacher(torch.from_numpy(image)[None]))

        rng = np.random.default_rng(0)
        clean = [smooth_image(size, rng) for _ in range(PAPER.batch)]
        changed, mask = make_pseudo_anomaly(clean[0], rng, procedural)
        self.clean = clean
        self.image = torch.from_numpy(np.stack([changed, *clean[1:]]))
        self.mask = torch.from_numpy(np.stack([mask, *(np.zeros_like(mask) for _ in clean[1:])]))
        self.initial = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def begin_again(self) -> None:
        """Forget what was trained, so that all variants step from the same weights."""
        self.model.load_state_dict(self.initial)
        for optimiser in (*self.published_optimisers, *self.optimisers):
            optimiser.state.clear()

    def published(self) -> dict[str, Tensor]:
        clean = torch.from_numpy(np.stack(self.clean))
        return plain_training.step(self.model, self.teacher, self.published_optimisers, self.image, clean, self.mask)

    def clean_known(self) -> dict[str, Tensor]:
        before = self.clean_targets(self.clean, torch.device("cpu"))
        seen = plain_training.teacher_maps(self.teacher, self.image)
        return self._plain_losses(seen, before)

    def untouched_known(self) -> dict[str, Tensor]:
        before = self.clean_targets(self.clean, torch.device("cpu"))
        return self._plain_losses(image_targets(self.teacher, self.image, self.mask, before), before)

    def batched(self) -> dict[str, Tensor]:
        with plain_training.unfused(self.model):
            return self.together()

    def together(self) -> dict[str, Tensor]:
        before = self.clean_targets(self.clean, torch.device("cpu"))
        seen = image_targets(self.teacher, self.image, self.mask, before)
        return self._learn(self.step(self.image, self.mask, before, seen), self.optimisers)

    def by_onednn(self) -> dict[str, Tensor]:
        with ByOneDNN():
            return self.together()

    def turned(self) -> dict[str, Tensor]:
        self.clean_targets = CleanTargets(self.clean_targets.compute, keep=False)
        return self.by_onednn()

    def _plain_losses(self, seen: Any, before: Any) -> dict[str, Tensor]:
        with plain_training.unfused(self.model):
            losses = plain_training.losses_of(self.model, self.image, self.mask, seen, before)
            return self._learn(losses, self.published_optimisers)

    def _learn(self, losses: dict[str, Tensor], optimisers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
        torch.stack(list(losses.values())).sum().backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return losses


VARIANTS: dict[str, tuple[Callable[[Training], dict[str, Tensor]], bool]] = {
    PUBLISHED: (Training.published, False),
    "teacher outputs of clean images cached": (Training.clean_known, False),
    "those of unmodified images, too": (Training.untouched_known, False),
    "decoder on whole batches": (Training.batched, False),
    TOGETHER: (Training.together, False),
    "freed memory kept by the allocator": (Training.together, True),
    OURS: (Training.by_onednn, True),
    TURNED: (Training.turned, True),
}
"""Name → step, and whether freed memory is kept; each has the savings of those before it, but the last."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns to time (default: 3)")
    parser.add_argument("--size", type=int, default=PAPER.size, metavar="S", help=f"default: {PAPER.size}")
    parser.add_argument("--out", type=Path, metavar="F", help="JSON file to write the results to")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.variant:
        print(json.dumps(timed(options.variant, options.size)))
        return
    with exit_with_one_line():
        for result in measure(options.size, max(1, options.rounds)):
            if options.out is not None:
                write_text(options.out, json.dumps(result, indent=2, allow_nan=False) + "\n")
        show(result)
    missed = [goal for goal in result["goals"] if not goal["met"]]
    for goal in missed:
        print(f"missed: {goal['name']} is {goal['found']:.3g}, the bound is {goal['bound']:g}", file=sys.stderr)
    sys.exit(1 if missed else 0)


def measure(size: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield all results after each turn, as JSON values."""
    before = system.moment()
    rates = {kind: images_per_second(kind) for kind in ("perlin", "all kinds")}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for turn in range(rounds):
        for name in VARIANTS:
            runs[name].append(in_own_process(name, size))
            print(
                f"turn {turn + 1} of {rounds}, {name}: {runs[name][-1]['seconds']:.1f} s", file=sys.stderr, flush=True
            )
        yield summary(runs, rates) | {
            "command": f"python benchmarks/training.py --size {size} --rounds {turn + 1}",
            "date": datetime.date.today().isoformat(),
            "machine": asdict(system.describe(PACKAGES, before)),
            "size": size,
            "batch": PAPER.batch,
            "pseudo_anomalous": 1,
            "precision": "float32",
            "threads": 1,
            "rounds": turn + 1,
        }


def summary(runs: dict[str, list[dict[str, Any]]], rates: dict[str, float]) -> dict[str, Any]:
    """Return rows, losses and goals from the results of `timed` for each variant and turn, and the pipeline's rates."""
    seconds = {name: [run["seconds"] for run in found] for name, found in runs.items()}
    peaks = {name: max(run["peak_bytes"] for run in found) for name, found in runs.items()}
    losses = {name: found[0]["losses"] for name, found in runs.items()}
    published = np.array(seconds[PUBLISHED])
    difference = {
        name: max(abs(found[loss] - losses[PUBLISHED][loss]) for loss in found) for name, found in losses.items()
    }
    rows: list[dict[str, Any]] = []
    for name, times in seconds.items():
        ratio = float(np.median(published / np.array(times)))
        rows.append(
            {
                "name": name,
                "best_s": min(times),
                "median_s": float(np.median(times)),
                "times_as_fast": ratio,
                "share_of_the_published_time_saved": (
                    1 - 1 / ratio if name in (PUBLISHED, TURNED) else 1 / rows[-1]["times_as_fast"] - 1 / ratio
                ),
                "peak_memory_gb": peaks[name] / 1e9,
                "largest_loss_difference": difference[name],
            }
        )
    found = {
        "speed": next(row["times_as_fast"] for row in rows if row["name"] == OURS),
        "loss_difference": max(difference.values()),
        "memory": max(peaks[OURS], peaks[TURNED]) / peaks[PUBLISHED],
        "images_per_second": rates["perlin"],
    }
    goals = [
        {
            "name": name,
            "found": found[name],
            "bound": bound,
            "met": found[name] >= bound if name in ("speed", "images_per_second") else found[name] <= bound,
        }
        for name, bound in GOALS.items()
    ]
    return {
        "rows": rows,
        "losses": losses[PUBLISHED],
        "pipeline": {"size": PIPELINE_SIZE, "rotation": "bottle", "images_per_second": rates},
        "goals": goals,
    }


def in_own_process(name: str, size: int) -> dict[str, Any]:
    """Return the result of `timed` in a process of its own, whose heap no other variant has changed."""
    command = [sys.executable, __file__, "--size", str(size), "--variant", name]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def timed(name: str, size: int) -> dict[str, Any]:
    """Return CPU seconds of the third step, its losses, and the largest resident set in bytes."""
    step, keep = VARIANTS[name]
    if keep:
        keep_freed_memory()
    training = Training(size)
    step(training)
    if keep:
        return_freed_memory()  # as training does after its first step
    step(training)
    training.begin_again()
    start = process_time()
    losses = step(training)
    return {
        "seconds": process_time() - start,
        "losses": {loss: value.item() for loss, value in losses.items()},
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def images_per_second(kind: str, count: int = 100, trials: int = 4) -> float:
    """Return the pseudo-anomalous images that one process makes per CPU second, the best of some trials."""
    kinds = tuple(KINDS) if kind == "all kinds" else (kind,)
    rng = np.random.default_rng(0)
    images = [smooth_image(PIPELINE_SIZE, rng) for _ in range(8)]
    source = any_of(procedural, patches_of(images))
    fastest = float("inf")
    for _ in range(trials):
        start = os.times()
        for number in range(count):
            make_pseudo_anomaly(rotated(images[number % 8], rng, "bottle"), rng, source, kinds)
        end = os.times()
        fastest = min(fastest, end.user + end.system - start.user - start.system)
    return count / fastest


def smooth_image(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return coloured clouds with some grain, uint8 size×size×3."""
    texture = procedural(rng, size).astype(np.float32)
    return (0.5 * texture + 64 + rng.normal(0, 4, texture.shape)).clip(0, 255).astype(np.uint8)


def show(result: dict[str, Any]) -> None:
    described = result["machine"]
    print(
        f"{described['processor']}, {described['cores']} cores, load {described['load_before']} before and "
        f"{described['load_after']} after; {result['date']}\n"
        f"S={result['size']}, batch {result['batch']}, float32, 1 thread, {result['rounds']} turns\n"
    )
    print(f"{'':32} {'best':>8} {'median':>8} {'as fast':>8} {'saves':>7} {'peak':>9} {'losses off by':>14}")
    for row in result["rows"]:
        print(
            f"{row['name']:32} {row['best_s']:6.1f} s {row['median_s']:6.1f} s {row['times_as_fast']:7.2f}× "
            f"{row['share_of_the_published_time_saved']:7.1%} {row['peak_memory_gb']:6.2f} GB "
            f"{row['largest_loss_difference']:14.1e}"
        )
    rates = result["pipeline"]["images_per_second"]
    print(f"\ndata pipeline at {PIPELINE_SIZE}: " + ", ".join(f"{kind} {rate:.0f}/s" for kind, rate in rates.items()))


if __name__ == "__main__":
    main()
