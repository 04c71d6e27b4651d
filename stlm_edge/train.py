"""Training, from normal pictures to a calibrated checkpoint.

Both streams begin from the same encoder. The plain stream learns the teacher's features of the picture that it sees,
pseudo-anomalies included; the denoising stream sees the same and learns the teacher's features of the clean picture;
feature aggregation learns the mask from their difference. Every batch follows from (seed, step) alone, so a resumed run
ends with the same weights as an uninterrupted one.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
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
from stlm_edge import checkpoint, run_folder, start
from stlm_edge.calibrate import calibrate
from stlm_edge.data.batches import Pictures, anomalous_batch
from stlm_edge.data.datasets import training_samples
from stlm_edge.data.textures import any_of, folder_of, patches_of, procedural
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import replacing
from stlm_edge.losses import cosine_loss, dice_loss, focal_loss, l1_loss
from stlm_edge.manifest import Calibration
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.model.stlm import STRIDE, Maps
from stlm_edge.picture import read_picture
from stlm_edge.recipes import Recipe
from stlm_edge.teachers import TEACHERS, open_teacher

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
    format: str | None = None
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
    samples = [sample.picture for sample in training_samples(job.data, job.category, job.format)]
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
    total = recipe.steps or math.ceil((recipe.epochs or 0) * len(pictures) / recipe.batch)
    config = {
        "stlm_edge": stlm_edge.__version__,
        "recipe": asdict(recipe),
        "size": job.size,
        "depths": list(job.depths),
        "seed": job.seed,
        "teacher": TEACHERS[job.teacher],
        "data": str(job.data),
        "category": job.category,
        "textures": None if job.textures is None else str(job.textures),
        "training_pictures": len(pictures),
        "held_out_pictures": len(held_out),
        "data_digest": digest(samples),
        "steps": total,
    }
    for path in held_out:
        read_picture(path)
    for index in range(len(pictures)):
        pictures[index]
    source = any_of(procedural, patches_of(pictures))
    if job.textures is not None:
        source = any_of(folder_of(job.textures), source)
    finished = out / run_folder.CHECKPOINT
    run_folder.start(out, config, resume)
    if finished.exists():
        return finished
    run_folder.keep_held_out(out, held_out, source, job.seed)

    torch.manual_seed(job.seed)
    model = STLM(model_config)
    teacher = open_teacher(job.teacher)
    if recipe.start == "generic":
        start.load(start.SHIPPED, model, teacher)
        model.fa.begin_from_cosines()
    else:
        teacher.fit(in_batches(pictures))
    model.denoising.load_state_dict(model.plain.state_dict())
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher = teacher.to(device)
    clean = CleanTargets(teacher if recipe.denoising_target == "teacher" else PlainStream(model), pictures, device)
    optimisers = make_optimisers(model, recipe)
    use_bf16 = recipe.bf16 and (device == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16")))

    first, seconds_before = 0, 0.0
    if (out / run_folder.STATE).exists():
        state = torch.load(out / run_folder.STATE, map_location=device, weights_only=True)
        first, seconds_before = state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
    _cut_log(out / run_folder.LOG, first)

    started = time.monotonic() - seconds_before
    with _progress() as progress, (out / run_folder.LOG).open("a", encoding="utf-8") as log:
        bar = progress.add_task("", total=total, completed=first, loss="")
        set_mode(model, recipe)
        for step in range(first, total):
            rate = schedule(step, total) if recipe.cosine_schedule else 1.0
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = group["peak_lr"] * rate

            rng = np.random.default_rng([job.seed, step])
            batch = anomalous_batch(pictures, source, rng, recipe.batch)
            with torch.autocast(device, torch.bfloat16, enabled=use_bf16):
                losses = two_stream_losses(model, teacher, clean, batch, recipe, device)
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

            done = step + 1
            progress.update(bar, completed=done, loss=f"loss {loss.item():.3f}")
            if step % LOG_EVERY == 0 or done == total:
                row = {"step": step, "loss": loss.item()}
                row |= {name: value.item() for name, value in losses.items()}
                log.write(json.dumps(row | {"rate": rate, "seconds": round(time.monotonic() - started, 2)}) + "\n")
                log.flush()
            if done % job.save_every == 0 and done < total:
                save_state(out / run_folder.STATE, model, optimisers, done, time.monotonic() - started)

    model = model.to("cpu", memory_format=torch.contiguous_format).eval()
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


class PlainStream:
    """A frozen plain stream as the denoising one's teacher: on normal pictures the two then agree by construction, and
    what the plain stream failed to learn of SAM's or the stand-in's features is no difference between them."""

    def __init__(self, model: STLM):
        self.model = model

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Maps:
        embedding = self.model.plain(self.model.normalise(image))
        return embedding, self.model.decode(embedding)


class CleanTargets:
    """What the denoising stream is to say of clean pictures, computed once, kept in float16 while it fits into 4 GiB.

    One picture at a time: a resumed run, whose cache is empty, thus gets the very same numbers.
    """

    def __init__(self, teacher: Callable[[Tensor], Maps], pictures: Pictures, device: str):
        self.teacher, self.pictures, self.device = teacher, pictures, device
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, indices: list[int]) -> Maps:
        first, second = zip(*(self._of(index) for index in indices), strict=True)
        return torch.cat(first).float(), torch.cat(second).float()

    def _of(self, index: int) -> tuple[Tensor, Tensor]:
        if index in self.kept:
            return self.kept[index]
        first, second = self.teacher(torch.from_numpy(self.pictures[index])[None].to(self.device))
        maps = first.half(), second.half()
        if (len(self.kept) + 1) * 2 * (first.numel() + second.numel()) <= CACHED_TEACHER_BYTES:
            self.kept[index] = maps
        return maps


def two_stream_losses(
    model: STLM,
    teacher: nn.Module,
    clean: CleanTargets,
    batch: tuple[list[int], np.ndarray, np.ndarray],
    recipe: Recipe,
    device: str,
) -> dict[str, Tensor]:
    """STLM's training step (section III): both streams see the pseudo-anomalous pictures."""
    indices, images, masks = batch
    image = torch.from_numpy(images).to(device)
    plain, denoising = (tuple(m.float() for m in maps) for maps in model.streams(model.normalise(image)))
    compared = [tuple(m.detach() for m in maps) if recipe.fa_detached else maps for maps in (plain, denoising)]
    area = F.avg_pool2d(torch.from_numpy(masks).to(device)[:, None].float(), STRIDE)
    losses = {}
    with torch.autocast(device, enabled=False):  # bfloat16 cannot tell cosines of 0.990 and 0.994 apart
        logits = model.fa(*compared)
        if recipe.plain_lr:
            losses["plain"] = cosine_loss(plain, teacher(image))  # type: ignore[arg-type]
        losses["denoising"] = cosine_loss(denoising, clean(indices))  # type: ignore[arg-type]
        if not recipe.fa_lr:
            return losses
        if recipe.fa_loss == "focal+l1":
            mask = (area >= 0.5).float()
            losses |= {"focal": focal_loss(logits.sigmoid(), mask), "l1": l1_loss(logits.sigmoid(), mask)}
        else:
            losses["cross_entropy"] = F.binary_cross_entropy_with_logits(logits, area)
            losses["dice"] = dice_loss(logits.sigmoid(), area)
    return losses


def make_optimisers(model: STLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Every group carries its `peak_lr`, which the schedule scales; parts with a rate of 0 are left out."""
    decoder = [*model.mask_decoder.parameters(), *model.prompt_encoder.parameters()]
    streams = [
        _group(parameters, rate)
        for parameters, rate in (
            (model.plain.parameters(), recipe.plain_lr),
            (model.denoising.parameters(), recipe.denoising_lr),
            (decoder, recipe.decoder_lr),
            *([] if recipe.optimiser == "adam+sgd" else [(model.fa.parameters(), recipe.fa_lr)]),
        )
        if rate
    ]
    if recipe.optimiser == "adam+sgd":
        heads = [_group(model.fa.res.parameters(), recipe.fa_lr), _group(model.fa.head.parameters(), recipe.fa_lr / 10)]
        return [
            torch.optim.Adam(streams, betas=(0.5, 0.999)),
            torch.optim.SGD(heads, momentum=0.9, weight_decay=1e-4),
        ]
    return [torch.optim.AdamW(streams, weight_decay=0.01)]


def schedule(step: int, total: int) -> float:
    """Share of the peak learning rate: a warm-up, then half a cosine down to 2%."""
    warm_up = min(WARM_UP, max(1, total // 5))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def set_mode(model: STLM, recipe: Recipe) -> None:
    """Training mode; what the recipe freezes keeps its weights, and the encoders' batch norms their statistics."""
    model.train()
    model.plain.requires_grad_(recipe.plain_lr > 0)
    model.mask_decoder.requires_grad_(recipe.decoder_lr > 0)
    model.prompt_encoder.requires_grad_(recipe.decoder_lr > 0)
    model.fa.requires_grad_(recipe.fa_lr > 0)
    if recipe.freeze_batch_norm:
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


def _group(parameters: Any, peak_lr: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": peak_lr, "peak_lr": peak_lr}


def in_batches(pictures: Pictures, batch: int = 16) -> Iterator[Tensor]:
    for begin in range(0, len(pictures), batch):
        indices = range(begin, min(begin + batch, len(pictures)))
        yield torch.from_numpy(np.stack([pictures[index] for index in indices]))


def save_state(path: Path, model: STLM, optimisers: list[torch.optim.Optimizer], step: int, seconds: float) -> None:
    """Write where training stands, for --resume."""
    state = {"step": step, "seconds": seconds, "model": model.state_dict()}
    with replacing(path) as temporary:
        torch.save(state | {"optimisers": [optimiser.state_dict() for optimiser in optimisers]}, temporary)


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines of steps that will be done again."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        with replacing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] < step))


def _progress() -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
