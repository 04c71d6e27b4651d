"""Training, from normal pictures to a calibrated checkpoint.

A run is a row of steps. The first `distil_steps` teach one encoder and the decoder the teacher's features of varied
views (the common start); then both streams begin from that encoder and the two-stream training of STLM follows: the
plain stream learns the teacher's features of the pseudo-anomalous picture, the denoising stream those of the clean one,
and feature aggregation learns the mask. Every batch follows from (seed, step) alone, so a resumed run ends with the
same weights as an uninterrupted one.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

import stlm_edge
from stlm_edge import checkpoint, run_folder
from stlm_edge.calibrate import calibrate
from stlm_edge.data.batches import Pictures, anomalous_batch, views
from stlm_edge.data.datasets import training_samples
from stlm_edge.data.textures import any_of, folder_of, patches_of, procedural
from stlm_edge.errors import JobError, UsageError
from stlm_edge.losses import cosine_loss, dice_loss, focal_loss, l1_loss
from stlm_edge.manifest import Calibration
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.model.stlm import STRIDE, Maps
from stlm_edge.recipes import Recipe
from stlm_edge.teacher import TEACHERS

HELD_OUT_SHARE, LEAST_HELD_OUT = 0.15, 8
LOG_EVERY = 10
WARM_UP = 50
CACHED_TEACHER_BYTES = 4 << 30


@dataclass(frozen=True)
class Job:
    """What to train on what."""

    data: Path
    recipe: Recipe
    size: int
    category: str | None = None
    seed: int = 0
    teacher: str = "efficientnet-lite0"
    textures: Path | None = None
    false_alarm_rate: float = 0.01
    save_every: int = 50
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)


def train(job: Job, out: Path, resume: bool = False) -> Path:
    """Train, calibrate, and write the checkpoint; returns its path. Raises UsageError and JobError.

    Interrupted, it goes on where the last saved step was when called again with `resume`.
    """
    try:
        model_config = ModelConfig(job.size, job.depths)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if job.teacher not in TEACHERS:
        raise UsageError(f"teacher {job.teacher}: unknown; this release has {', '.join(TEACHERS)}")
    samples = [sample.picture for sample in training_samples(job.data, job.category)]
    if len(samples) < 2 * LEAST_HELD_OUT:
        raise UsageError(
            f"{job.data}: {len(samples)} normal pictures; at least {2 * LEAST_HELD_OUT} are needed, "
            f"{LEAST_HELD_OUT} of them held out for the threshold; take more pictures of good parts"
        )
    order = np.random.default_rng(job.seed).permutation(len(samples))
    held_out_count = max(LEAST_HELD_OUT, round(HELD_OUT_SHARE * len(samples)))
    held_out = [samples[i] for i in sorted(order[:held_out_count])]
    pictures = Pictures([samples[i] for i in sorted(order[held_out_count:])], job.size)

    recipe, device = job.recipe, "cuda" if torch.cuda.is_available() else "cpu"
    steps = recipe.steps or math.ceil((recipe.epochs or 0) * len(pictures) / recipe.batch)
    total = recipe.distil_steps + steps
    config = {
        "stlm_edge": stlm_edge.__version__,
        "recipe": asdict(recipe),
        "size": job.size,
        "depths": list(job.depths),
        "seed": job.seed,
        "teacher": TEACHERS[job.teacher].description,
        "data": str(job.data),
        "category": job.category,
        "textures": None if job.textures is None else str(job.textures),
        "training_pictures": len(pictures),
        "held_out_pictures": len(held_out),
        "data_digest": digest(samples),
        "total_steps": total,
    }
    source = any_of(procedural, patches_of(pictures))
    if job.textures is not None:
        source = any_of(folder_of(job.textures), source)
    finished = out / run_folder.CHECKPOINT
    run_folder.start(out, config, resume)
    if finished.exists():
        return finished
    run_folder.keep_held_out(out, held_out, source, job.seed)

    torch.manual_seed(job.seed)
    model = STLM(model_config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher = TEACHERS[job.teacher]().to(device)
    teacher.fit(_batches(pictures, device))
    clean = CleanTargets(teacher, pictures, device)
    use_bf16 = recipe.bf16 and (device == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16")))

    first, seconds_before = 0, 0.0
    optimisers: list[torch.optim.Optimizer] = []
    if (out / run_folder.STATE).exists():
        state = torch.load(out / run_folder.STATE, map_location=device, weights_only=True)
        first, seconds_before = state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        optimisers = make_optimisers(model, recipe, distilling=first < recipe.distil_steps)
        for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
    _cut_log(out / run_folder.LOG, first)

    started = time.monotonic() - seconds_before
    with _progress() as progress, (out / run_folder.LOG).open("a", encoding="utf-8") as log:
        bar = progress.add_task("", total=total, completed=first, phase="", loss="")
        for step in range(first, total):
            distilling = step < recipe.distil_steps
            if step in (0, recipe.distil_steps):
                if step and not distilling:
                    model.denoising.load_state_dict(model.plain.state_dict())
                optimisers = make_optimisers(model, recipe, distilling)
            set_mode(model, frozen_batch_norm=recipe.freeze_batch_norm and not distilling)
            rate = schedule(step, recipe, total)
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = group["peak_lr"] * rate

            rng = np.random.default_rng([job.seed, step])
            with torch.autocast(device, torch.bfloat16, enabled=use_bf16):
                if distilling:
                    losses = distillation_losses(model, teacher, views(pictures, source, rng, recipe.batch), device)
                else:
                    batch = anomalous_batch(pictures, source, rng, recipe.batch)
                    losses = two_stream_losses(model, teacher, clean, batch, recipe.fa_loss, device)
            loss = torch.stack(list(losses.values())).sum()
            if not math.isfinite(loss.item()):
                raise JobError(f"step {step}: the loss is {loss.item()}; lower the learning rate or check the pictures")
            for optimiser in optimisers:
                optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if recipe.cosine_schedule:
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            for optimiser in optimisers:
                optimiser.step()

            done, phase = step + 1, "common start" if distilling else "two streams"
            progress.update(bar, completed=done, phase=phase, loss=f"loss {loss.item():.3f}")
            if step % LOG_EVERY == 0 or done == total:
                row = {"step": step, "phase": phase, "loss": loss.item()}
                row |= {name: value.item() for name, value in losses.items()}
                log.write(json.dumps(row | {"rate": rate, "seconds": round(time.monotonic() - started, 2)}) + "\n")
                log.flush()
            if done % job.save_every == 0 and done < total:
                _save_state(out / run_folder.STATE, model, optimisers, done, time.monotonic() - started)

    model = model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    provenance = {key: config[key] for key in ("stlm_edge", "seed", "teacher", "data_digest", "training_pictures")}
    provenance |= {
        "recipe": recipe.name,
        "steps": total,
        "data": job.category or job.data.resolve().name,
        "teacher_sha256": teacher.digest,
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started),
    }
    checkpoint.save(finished, model, provenance, calibrated(model, Pictures(held_out, job.size), job.false_alarm_rate))
    (out / run_folder.STATE).unlink(missing_ok=True)
    return finished


class CleanTargets:
    """The frozen teacher's maps of clean pictures, computed once and kept in float16 while they fit into 4 GiB."""

    def __init__(self, teacher: nn.Module, pictures: Pictures, device: str):
        self.teacher, self.pictures, self.device = teacher, pictures, device
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, indices: list[int]) -> Maps:
        missing = [index for index in dict.fromkeys(indices) if index not in self.kept]
        fresh: dict[int, tuple[Tensor, Tensor]] = {}
        if missing:
            images = torch.from_numpy(np.stack([self.pictures[index] for index in missing])).to(self.device)
            maps = [m.half() for m in self.teacher(images)]
            fresh = {index: (maps[0][row], maps[1][row]) for row, index in enumerate(missing)}
        found = self.kept | fresh
        size = sum(m.numel() for m in found[indices[0]]) * 2
        if len(found) * size <= CACHED_TEACHER_BYTES:
            self.kept = found
        first, second = (torch.stack([found[index][k].float() for index in indices]) for k in (0, 1))
        return first, second


def distillation_losses(model: STLM, teacher: nn.Module, images: np.ndarray, device: str) -> dict[str, Tensor]:
    """The common start: the plain encoder and the decoder learn the teacher's maps of `images`, B×S×S×3 uint8."""
    batch = torch.from_numpy(images).to(device)
    embedding = model.plain(model.normalise(batch))
    maps = embedding.float(), model.decode(embedding).float()
    first, second = (
        (1 - F.cosine_similarity(m, t, dim=1)).mean() for m, t in zip(maps, _exact(teacher, batch), strict=True)
    )
    return {"plain_1": first, "plain_2": second}


def two_stream_losses(
    model: STLM,
    teacher: nn.Module,
    clean: CleanTargets,
    batch: tuple[list[int], np.ndarray, np.ndarray],
    fa_loss: str,
    device: str,
) -> dict[str, Tensor]:
    """STLM's training step (section III): both streams see the pseudo-anomalous pictures."""
    indices, images, masks = batch
    image = torch.from_numpy(images).to(device)
    plain, denoising = (tuple(m.float() for m in maps) for maps in model.streams(model.normalise(image)))
    area = F.avg_pool2d(torch.from_numpy(masks).to(device)[:, None].float(), STRIDE)
    logits = model.fa(plain, denoising).float()
    losses = {
        "plain": cosine_loss(plain, _exact(teacher, image)),  # type: ignore[arg-type]
        "denoising": cosine_loss(denoising, clean(indices)),  # type: ignore[arg-type]
    }
    with torch.autocast(device, enabled=False):
        if fa_loss == "focal+l1":
            mask = (area >= 0.5).float()
            losses |= {"focal": focal_loss(logits.sigmoid(), mask), "l1": l1_loss(logits.sigmoid(), mask)}
        else:
            losses |= {
                "cross_entropy": F.binary_cross_entropy_with_logits(logits, area),
                "dice": dice_loss(logits.sigmoid(), area),
            }
    return losses


def make_optimisers(model: STLM, recipe: Recipe, distilling: bool) -> list[torch.optim.Optimizer]:
    """Fresh optimisers; every group carries its `peak_lr`, which `schedule` scales."""
    decoder = [*model.mask_decoder.parameters(), *model.prompt_encoder.parameters()]
    if distilling:
        return [torch.optim.AdamW([_group([*model.plain.parameters(), *decoder], recipe.distil_lr)], weight_decay=0.01)]
    if recipe.optimiser == "adam+sgd":
        streams = [*model.plain.parameters(), *model.denoising.parameters(), *decoder]
        heads = [_group(model.fa.res.parameters(), 0.1), _group(model.fa.head.parameters(), 0.01)]
        return [
            torch.optim.Adam([_group(streams, recipe.denoising_lr)], betas=(0.5, 0.999)),
            torch.optim.SGD(heads, lr=0.1, momentum=0.9, weight_decay=1e-4),
        ]
    groups = [
        _group([*model.plain.parameters(), *decoder], recipe.plain_lr),
        _group(model.denoising.parameters(), recipe.denoising_lr),
        _group(model.fa.parameters(), 1e-3),
    ]
    return [torch.optim.AdamW(groups, weight_decay=0.01)]


def schedule(step: int, recipe: Recipe, total: int) -> float:
    """Share of the peak learning rate: in each phase a warm-up, then half a cosine down to 2%."""
    if not recipe.cosine_schedule:
        return 1.0
    begin, end = (0, recipe.distil_steps) if step < recipe.distil_steps else (recipe.distil_steps, total)
    done, length = step - begin, end - begin
    warm_up = min(WARM_UP, max(1, length // 5))
    if done < warm_up:
        return (done + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / max(1, length - warm_up)))


def set_mode(model: STLM, frozen_batch_norm: bool) -> None:
    """Training mode, the encoders' batch norms in evaluation mode where their statistics are frozen."""
    model.train()
    if frozen_batch_norm:
        for encoder in (model.plain, model.denoising):
            for module in encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()


def calibrated(model: STLM, held_out: Pictures, false_alarm_rate: float) -> Calibration:
    """Judge the held-out normal pictures one by one, as a device will, and take the threshold from them."""
    scores, map_medians = [], []
    with torch.inference_mode():
        for index in range(len(held_out)):
            answer = model(torch.from_numpy(held_out[index])[None])
            scores.append(answer.score.item())
            map_medians.append(answer.anomaly_map.median().item())
    return calibrate(scores, map_medians, false_alarm_rate, "training")


def digest(paths: list[Path]) -> str:
    """sha256 over the names and contents of files, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _exact(teacher: nn.Module, images: Tensor) -> Maps:
    with torch.autocast(images.device.type, enabled=False):
        return teacher(images)


def _group(parameters: Any, peak_lr: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": peak_lr, "peak_lr": peak_lr}


def _batches(pictures: Pictures, device: str, batch: int = 16) -> Iterator[Tensor]:
    for begin in range(0, len(pictures), batch):
        indices = range(begin, min(begin + batch, len(pictures)))
        yield torch.from_numpy(np.stack([pictures[index] for index in indices])).to(device)


def _save_state(path: Path, model: STLM, optimisers: list[torch.optim.Optimizer], step: int, seconds: float) -> None:
    temporary = path.with_name(path.name + ".part")
    state = {"step": step, "seconds": seconds, "model": model.state_dict()}
    torch.save(state | {"optimisers": [optimiser.state_dict() for optimiser in optimisers]}, temporary)
    os.replace(temporary, path)


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines of steps that will be done again."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        run_folder.write_text(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] < step))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.fields[phase]:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
