"""Distil the generic start: one encoder and the decoder learn the teacher's features of pictures of every kind.

    python benchmarks/generic_start.py --pictures DIR [--pictures DIR ...] --out RUN [--steps 8000]
    python benchmarks/generic_start.py ... --ship stlm_edge/weights/generic_start.safetensors

Half of what it sees is procedural (textures of our own code). Interrupted, it goes on from the last saved step; the
shipped file is written whenever `--ship` is given and all steps are done. Only pictures whose licence allows weights
trained on them to be shipped belong into `--pictures`; what was used is recorded in the file's card.
"""

import argparse
import json
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stlm_edge import start
from stlm_edge.data.batches import Pictures, views
from stlm_edge.data.textures import any_of, patches_of, procedural
from stlm_edge.job import in_batches
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.model.stlm import Maps
from stlm_edge.picture import is_picture
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.train import save_state
from stlm_edge.two_streams import schedule

SIZE, BATCH, LEARNING_RATE = 224, 8, 5e-4
PICTURE_SIZE = 320  # what crops are taken from
PROBE_EVERY, SAVE_EVERY, HELD_OUT_EVERY = 500, 250, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pictures", type=Path, action="append", required=True, help="folder, read with its subfolders"
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--begin", type=Path, help="a start to go on from, instead of random weights")
    parser.add_argument("--ship", type=Path, help="where the finished start is written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)

    found = {folder: sorted(p for p in folder.rglob("*") if is_picture(p)) for folder in options.pictures}
    everything = [path for paths in found.values() for path in paths]
    pictures = Pictures([p for n, p in enumerate(everything) if n % HELD_OUT_EVERY], PICTURE_SIZE)
    held_out = Pictures(everything[::HELD_OUT_EVERY], SIZE)

    torch.manual_seed(options.seed)
    model = STLM(ModelConfig(SIZE)).to(memory_format=torch.channels_last)
    teacher = EfficientNetLite0()
    if options.begin:
        start.load(options.begin, model, teacher)
    else:
        sample = np.random.default_rng(options.seed).permutation(len(pictures))[:1024]
        teacher.fit(in_batches(Pictures([pictures.paths[i] for i in sorted(sample)], SIZE)))
    trained = [*model.plain.parameters(), *model.mask_decoder.parameters(), *model.prompt_encoder.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    source = any_of(procedural, patches_of(pictures))
    first, state_file, log = 0, options.out / "state.pt", options.out / "log.jsonl"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        first = state["step"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimisers"][0])

    began = time.monotonic()
    for step in range(first, options.steps):
        model.train()
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * schedule(step, options.steps)
        batch = views(pictures, source, np.random.default_rng([options.seed, step]), BATCH, SIZE)
        with torch.autocast("cpu", torch.bfloat16):
            losses = distances(model, teacher, torch.from_numpy(batch))
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
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")

    if options.ship:
        curve = [json.loads(line) for line in log.read_text().splitlines()]
        card = {
            "sources": {folder.name: len(paths) for folder, paths in found.items()},
            "size": SIZE,
            "batch": BATCH,
            "steps": options.steps,
            "seed": options.seed,
            "date": date.today().isoformat(),
            "curve": curve,
        }
        options.ship.parent.mkdir(exist_ok=True)
        start.save(options.ship, model.to(memory_format=torch.contiguous_format), teacher, card)
        print(f"{options.ship}: {options.ship.stat().st_size / 1e6:.1f} MB")


def distances(model: STLM, teacher: EfficientNetLite0, images: Tensor) -> list[Tensor]:
    """Mean 1 − cos between the plain encoder's and the teacher's two maps of B×S×S×3 uint8 pictures."""
    embedding = model.plain(model.normalise(images))
    maps: Maps = (embedding.float(), model.decode(embedding).float())
    with torch.autocast("cpu", enabled=False):
        targets = teacher(images)
    return [(1 - F.cosine_similarity(m, t, dim=1)).mean() for m, t in zip(maps, targets, strict=True)]


@torch.no_grad()
def probe(model: STLM, teacher: EfficientNetLite0, pictures: Pictures) -> dict[str, float]:
    """1 − cos of both maps on held-out pictures, as they are."""
    model.eval()
    sums, batches = np.zeros(2), 0
    for batch in in_batches(pictures):
        sums += [distance.item() for distance in distances(model, teacher, batch)]
        batches += 1
    return {"held_out_1": round(sums[0] / batches, 4), "held_out_2": round(sums[1] / batches, 4)}


if __name__ == "__main__":
    main()
