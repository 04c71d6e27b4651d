"""Training, from normal images to a calibrated checkpoint.

Both streams begin from the same encoder. The plain stream learns the teacher's features of the image that it sees,
pseudo-anomalies included; the denoising stream sees the same and learns the teacher's features of the clean image;
feature aggregation learns the mask from their difference. Every sample follows from (seed, position) alone, so a
resumed run ends with the same weights as an uninterrupted one, and several processes see together what one alone would.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from stlm_edge.data.batches import AnomalousImages, Images, batches
from stlm_edge.data.rotation import is_turned
from stlm_edge.data.textures import any_of, folder_of, patches_of, procedural
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import replacing
from stlm_edge.images import read_image
from stlm_edge.model import STLM, checkpoint
from stlm_edge.model.products import ByOneDNN
from stlm_edge.model.stlm import Maps
from stlm_edge.runtimes.torch import run_model
from stlm_edge.teachers import Teacher, open_teacher
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.threshold import calibrate, judge
from stlm_edge.training import run_folder
from stlm_edge.training.allocator import keep_freed_memory, return_freed_memory
from stlm_edge.training.clean_targets import CleanTargets, PlainStream, seen_targets
from stlm_edge.training.feature_cache import FeatureCache
from stlm_edge.training.job import Job, asked_for, begin, category_of, digest, split
from stlm_edge.training.launcher import losing_a_peer_ends_the_job, open_fabric, said_once
from stlm_edge.training.loggers import open_curves
from stlm_edge.training.recipes import Recipe, for_teacher
from stlm_edge.training.step import TwoStreams, freeze, make_optimisers, schedule, set_rates
from stlm_edge.training.validation import Validation

LOG_EVERY = 10
LONG = 3600  # seconds; a training that takes longer says so
PATIENT_VALIDATIONS = 20  # at least, where --patience is given


def train(job: Job, out: Path, resume: bool = False) -> Path:
    """Train, calibrate, and write the checkpoint; returns its path. Raises UsageError and JobError.

    Interrupted, it goes on where the last saved step was when called again with `resume`. Started in several processes
    (torchrun, or processes.supervise), each takes its share of every batch and the first one writes.
    """
    with said_once(), losing_a_peer_ends_the_job():
        return _train(job, out, resume)


def _train(job: Job, out: Path, resume: bool) -> Path:
    job = replace(job, recipe=for_teacher(job.recipe, job.teacher == EfficientNetLite0.name))
    asked = asked_for(job)
    finished = out / run_folder.CHECKPOINT
    if resume and finished.exists():
        run_folder.compare(out, asked)
        _compare_rate(finished, job.false_alarm_rate)
        return finished
    held_out_paths, paths = split(job)
    recipe, images, held_out = job.recipe, Images(paths, job.size), Images(held_out_paths, job.size)
    total = recipe.steps or math.ceil((recipe.epochs or 0) * len(images) / recipe.batch)
    found = {
        "training_images": len(images),
        "held_out_images": len(held_out),
        "data_digest": digest([*paths, *held_out_paths]),
        "steps": total,
    }
    for path in held_out_paths:
        read_image(path)
    for index in range(len(images)):
        images[index]
    source = any_of(procedural, patches_of(images))
    if job.textures is not None:
        foreign = folder_of(job.textures)
        source = foreign if recipe.name == "paper" else any_of(foreign, source)  # as published: nothing else

    fabric = open_fabric(recipe.bf16)
    processes, first_process = fabric.world_size, fabric.is_global_zero
    if recipe.batch % processes:
        raise UsageError(f"a batch of {recipe.batch} for {processes} processes; start a number that divides it")
    with fabric.rank_zero_first():
        run_folder.start(out, asked | found, resume or not first_process)
    if first_process:
        run_folder.keep_held_out(out, held_out_paths, source, job.seed)

    if fabric.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(job.seed)
    model = STLM(replace(job.network, size=job.size))
    teacher = open_teacher(job.teacher, job.teacher_weights, job.network.decoder_dim)
    begin(model, teacher, job, images)
    teacher = teacher.to(fabric.device)
    model = model.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if processes > 1 and fabric.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    freeze(model, recipe)
    step, *optimisers = fabric.setup(TwoStreams(model, recipe), *make_optimisers(model, recipe))
    turned_as = category_of(job) if recipe.rotation else None
    come_again = not is_turned(turned_as)
    clean_targets = CleanTargets(_answer(model, teacher, recipe, come_again, fabric.device), keep=come_again)
    samples = AnomalousImages(images, source, job.seed, recipe.pseudo_anomalies, turned_as)
    validation = Validation(held_out, source, job.seed)
    validate_every = max(1, total // max(recipe.validations, PATIENT_VALIDATIONS if job.patience else 0))
    fast = ByOneDNN() if fabric.device.type == "cpu" and not _is_mixed(fabric) else contextlib.nullcontext()

    first, seconds_before, waited, best = 0, 0.0, 0, 0.0
    if (out / run_folder.STATE).exists():
        state = torch.load(out / run_folder.STATE, map_location=fabric.device, weights_only=True)
        first, seconds_before, waited, best = state["step"], state["seconds"], state["waited"], state["best"]
        model.load_state_dict(state["model"])
        for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
    fabric.barrier()
    log = run_folder.open_log(out, first) if first_process else None
    curves = open_curves(job.curves, out, asked | found, first) if first_process else None
    workers = _workers(fabric) if job.workers is None else job.workers
    share = batches(samples, first, total, recipe.batch, fabric.global_rank, processes, workers)

    started, number = time.monotonic() - seconds_before, first
    step.train()
    with _progress(not first_process) as progress:
        bar = progress.add_task("", total=total, completed=first, loss="")
        for number in range(first, total):
            before = time.monotonic() - started
            rate = schedule(number, total) if recipe.cosine_schedule else 1.0
            set_rates(optimisers, rate)
            batch, clean, masks = _next(share)
            image, mask = fabric.to_device((torch.from_numpy(batch), torch.from_numpy(masks)))
            with fast:
                wanted = clean_targets(clean, fabric.device)
                seen = seen_targets(teacher, image, mask, wanted) if recipe.plain_lr else None
                losses = step(image, mask, wanted, seen)
                loss = torch.stack(list(losses.values())).sum()
                if not math.isfinite(loss.item()):
                    raise JobError(f"step {number}: the loss is {loss.item()}; check the images, or lower the rates")
                fabric.backward(loss)
            if recipe.cosine_schedule:
                nn.utils.clip_grad_norm_(step.parameters(), 5.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            if number == first and fabric.device.type == "cpu":
                return_freed_memory()

            done, elapsed = number + 1, time.monotonic() - started
            progress.update(bar, completed=done, loss=f"loss {loss.item():.3f}")
            if done == first + 2 and first_process:
                _warn_of_a_long_wait((elapsed - before) * (total - done), recipe, fabric)
            figures: dict[str, float] = {}
            if done % validate_every == 0:
                step.eval()
                figures, sheet = validation.measure(model)
                figures = fabric.broadcast(figures)  # each process has its own statistics, and all must stop together
                step.train()
                waited, best = (0, figures["pixel_auroc"]) if figures["pixel_auroc"] > best else (waited + 1, best)
                if curves:
                    curves.image("validation", sheet, number)
            if number % LOG_EVERY == 0 or figures or done == total:
                row = {"loss": loss.item(), **{name: value.item() for name, value in losses.items()}}
                row = {name: fabric.all_reduce(value, reduce_op="mean").item() for name, value in row.items()}  # type: ignore[union-attr]
                row |= {"rate": rate, **{f"validation_{name}": value for name, value in figures.items()}}
                if log and curves:
                    run_folder.log_row(log, {"step": number, **row, "seconds": round(elapsed, 2)})
                    curves.numbers(row, number)
            if job.patience and waited >= job.patience:
                break
            if done % job.save_every == 0 and done < total and first_process:
                save_state(out / run_folder.STATE, model, optimisers, done, elapsed, waited=waited, best=best)

    model = model.to("cpu", memory_format=torch.contiguous_format).eval()
    provenance = {key: (asked | found)[key] for key in ("stlm_edge", "seed", "data_digest", "training_images")}
    provenance |= {
        "recipe": recipe.name,
        "steps": number + 1,
        "data": category_of(job),
        "teacher": teacher.description,
        "teacher_sha256": teacher.digest,
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started),
    }
    if log and curves:
        decision_threshold = calibrate(*judge(partial(run_model, model), held_out), job.false_alarm_rate)
        checkpoint.save(finished, model, provenance, decision_threshold)
        (out / run_folder.STATE).unlink(missing_ok=True)
        log.close()
        curves.close()
    fabric.barrier()
    return finished


def save_state(
    path: Path, model: STLM, optimisers: list[torch.optim.Optimizer], step: int, seconds: float, **more: Any
) -> None:
    """Write where training stands, for --resume. Raises JobError when it cannot be written."""
    state = {"step": step, "seconds": seconds, "model": model.state_dict(), **more}
    try:
        with replacing(path) as temporary:
            torch.save(state | {"optimisers": [optimiser.state_dict() for optimiser in optimisers]}, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer tells a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or "no room?"
        raise JobError(f"{path}: cannot be written ({reason}); free some, and go on by --resume") from None


def _compare_rate(finished: Path, rate: float) -> None:
    chosen = checkpoint.load(finished).decision_threshold
    if chosen is not None and chosen.false_alarm_rate != rate:
        raise UsageError(
            f"{finished}: its threshold is for a false-alarm rate of {chosen.false_alarm_rate:g}, asked for is "
            f"{rate:g}; resume with the same one, or find a bundle's threshold anew by stlm-calibrate"
        )


def _answer(
    model: STLM, teacher: Teacher, recipe: Recipe, come_again: bool, device: torch.device
) -> Callable[[np.ndarray], Maps]:
    """Who says of a clean image, S×S×3 uint8, what the denoising stream is to learn; images that `come_again` are
    worth keeping on disk.
    """
    if recipe.denoising_target == "teacher" and not teacher.is_stand_in and come_again:
        return FeatureCache(teacher)
    answer: Callable[[torch.Tensor], Maps] = teacher if recipe.denoising_target == "teacher" else PlainStream(model)
    return lambda image: answer(torch.from_numpy(image)[None].to(device))


def _is_mixed(fabric: Fabric) -> bool:
    return fabric.strategy.precision.precision != "32-true"


def _workers(fabric: Fabric) -> int:
    """None on a CPU, where they would take the training's own cores; beside a GPU up to 8 for each process."""
    if fabric.device.type == "cpu":
        return 0
    return max(1, min(8, (os.cpu_count() or 2) // fabric.world_size - 1))


def _next(samples: Iterator[Any]) -> Any:
    try:
        return next(samples)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise JobError(
            "a process that makes the images died (out of memory?); start the training again with --resume"
        ) from None


def _warn_of_a_long_wait(seconds: float, recipe: Recipe, fabric: Fabric) -> None:
    if seconds > LONG:
        long = f"{seconds / 3600:.0f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
        advice = "; --recipe quick takes minutes" if recipe.name != "quick" and fabric.device.type == "cpu" else ""
        Console(stderr=True).print(f"warning: this will take about {long} on this {fabric.device.type.upper()}{advice}")


def _progress(disable: bool) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=disable,
    )
