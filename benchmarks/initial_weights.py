"""Distil the initial weights: one encoder and the decoder learn the teacher's features of images of every kind.

    python benchmarks/initial_weights.py --images DIR [--images DIR ...] --out RUN [--steps 8000]
    python benchmarks/initial_weights.py --images DIR --out RUN --teacher vit_h    # on a GPU: SAM's features
    python benchmarks/initial_weights.py --images DIR --out RUN --ship FILE        # and write a file for --init

The same command continues an interrupted run from the last saved step. A third of the training images are procedural
(scenes and textures of our own code). Every 500 steps it measures 1 − cos to the teacher on held-out images and
held-out scenes, and the image and pixel AUROC of a memory bank on the student's own features of the built-in demo data.
Give only images whose licence allows weights trained on them to be shipped; the file's card records their folders.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from patchcore import PatchCore, of_two_maps
from PIL import Image, ImageFilter
from torch import Tensor

from stlm_edge.data.batches import Images
from stlm_edge.data.datasets import test_samples, training_samples
from stlm_edge.data.demo import write_demo
from stlm_edge.data.pseudo_anomalies import make_pseudo_anomaly
from stlm_edge.data.scenes import scene
from stlm_edge.data.textures import Source, any_of, patches_of, procedural
from stlm_edge.errors import exit_with_one_line
from stlm_edge.evaluation.evaluate import evaluate
from stlm_edge.images import is_image
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.model.stlm import Maps
from stlm_edge.teachers import TEACHERS, Teacher, open_teacher
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.threshold import calibrate
from stlm_edge.training import initial_weights, run_folder
from stlm_edge.training.job import in_batches
from stlm_edge.training.step import schedule
from stlm_edge.training.train import save_state

SIZE, BATCH, LEARNING_RATE = 224, 8, 5e-4
IMAGE_SIZE = 320  # of the images that crops are taken from
PROBE_EVERY, SAVE_EVERY, HELD_OUT_EVERY = 500, 250, 64
DEMO_IMAGES = 60  # in the memory bank, and as many test images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, action="append", required=True, help="folder, read with its subfolders")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher", choices=TEACHERS, default=EfficientNetLite0.name)
    parser.add_argument("--teacher-weights", type=Path, help="the teacher's published weights (default: downloaded)")
    parser.add_argument("--init", help="file of initial weights to continue from, or vit_t for MobileSAM's")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ship", type=Path, help="file to write the finished weights to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    sources = {folder: sorted(p for p in folder.rglob("*") if is_image(p)) for folder in options.images}
    everything = [path for paths in sources.values() for path in paths]
    images = Images([p for n, p in enumerate(everything) if n % HELD_OUT_EVERY], IMAGE_SIZE)
    held_out = Images(everything[::HELD_OUT_EVERY], options.size)

    torch.manual_seed(options.seed)
    model = STLM(ModelConfig(options.size))
    teacher = open_teacher(options.teacher, options.teacher_weights)
    if isinstance(teacher, EfficientNetLite0):
        sample = np.random.default_rng(options.seed).permutation(len(images))[:1024]
        teacher.fit(in_batches(Images([images.paths[i] for i in sorted(sample)], options.size)))
    if options.init == "vit_t":
        initial_weights.copy_mobile_sam(teacher if options.teacher == "vit_t" else open_teacher("vit_t"), model)
    elif options.init:
        initial_weights.load(Path(options.init), model, teacher)
    model, teacher = model.to(device, memory_format=torch.channels_last), teacher.to(device)
    trained = [*model.plain.parameters(), *model.mask_decoder.parameters(), *model.prompt_encoder.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    source = any_of(procedural, patches_of(images))
    settings = {name: getattr(options, name) for name in ("steps", "size", "batch", "seed", "teacher", "init")}
    run_folder.start(options.out, settings | {"images": len(everything)}, resume=True)
    first, state_file = 0, options.out / run_folder.STATE
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        first = state["step"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimisers"][0])

    log = run_folder.open_log(options.out, first + 1)
    began = time.monotonic()
    for step in range(first, options.steps):
        model.train()
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * schedule(step, options.steps)
        rng = np.random.default_rng([options.seed, step])
        batch = torch.from_numpy(views(images, source, rng, options.batch, options.size)).to(device)
        with torch.autocast(device, torch.bfloat16):
            losses = distances(model, teacher, batch)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimiser.step()
        done = step + 1
        if done % SAVE_EVERY == 0 or done == options.steps:
            save_state(state_file, model, [optimiser], done, 0.0)
        if done % PROBE_EVERY == 0 or done == options.steps:
            row = {"step": done, **probe(model, teacher, held_out), "seconds": round(time.monotonic() - began)}
            print(json.dumps(row), flush=True)
            print(json.dumps(row), file=log, flush=True)

    if options.ship:
        card = {
            "sources": {folder.name: len(paths) for folder, paths in sources.items()},
            "size": options.size,
            "batch": options.batch,
            "steps": options.steps,
            "seed": options.seed,
            "init": options.init and Path(options.init).name,
            "date": date.today().isoformat(),
            "curve": [json.loads(line) for line in (options.out / run_folder.LOG).read_text().splitlines()],
        }
        options.ship.parent.mkdir(exist_ok=True)
        initial_weights.save(options.ship, model.to(memory_format=torch.contiguous_format), teacher, card)
        print(f"{options.ship}: {options.ship.stat().st_size / 1e6:.1f} MB")


def distances(model: STLM, teacher: Teacher, images: Tensor) -> list[Tensor]:
    """Return mean 1 − cos between the plain encoder's and the teacher's two maps of B×S×S×3 uint8 images."""
    with torch.autocast(images.device.type, enabled=False):
        targets = teacher(images)
    return [(1 - F.cosine_similarity(m, t, dim=1)).mean() for m, t in zip(maps(model, images), targets, strict=True)]


def maps(model: STLM, images: Tensor) -> Maps:
    """Return the plain encoder's two maps of B×S×S×3 uint8 images, float32."""
    embedding = model.plain(model.normalise(images))
    return embedding.float(), model.decode(embedding).float()


@torch.no_grad()
def probe(model: STLM, teacher: Teacher, images: Images) -> dict[str, float]:
    """Return 1 − cos of both maps on held-out images and scenes, and metrics of a memory bank on their features."""
    model.eval()
    device, size = model.pixel_mean.device, model.config.size
    scenes = np.stack([scene(np.random.default_rng([97, n]), size) for n in range(len(images))])
    row = {}
    for name, batches in (
        ("held_out", in_batches(images)),
        ("scenes", iter(torch.from_numpy(scenes).split(16))),
    ):
        values = [[distance.item() for distance in distances(model, teacher, batch.to(device))] for batch in batches]
        row |= {f"{name}_{k}": round(float(mean), 4) for k, mean in enumerate(np.mean(values, axis=0), start=1)}
    with tempfile.TemporaryDirectory() as folder:
        demo = write_demo(Path(folder) / "demo")
        normal = Images([sample.image for sample in training_samples(demo)][:DEMO_IMAGES], size)
        bank = PatchCore(of_two_maps(lambda image: tuple(m.cpu() for m in maps(model, image.to(device)))), normal)
        samples = test_samples(demo)
        samples = samples[:: max(1, len(samples) // DEMO_IMAGES)]
        metrics = evaluate(bank, samples, size, calibrate([0.0, 1.0], [0.0, 1.0]), None, "memory bank")
    return row | {f"bank_{name}": round(metrics[name], 4) for name in ("image_auroc", "pixel_auroc")}


def views(images: Sequence[np.ndarray], source: Source, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Return random training images, count×S×S×3 uint8.

    They are crops of images in varied colour and sharpness, and procedural scenes, many with foreign patches in them;
    and foreign textures alone.
    """
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


if __name__ == "__main__":
    with exit_with_one_line("interrupted; the same command continues from the last saved step"):
        main()
