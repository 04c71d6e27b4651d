"""Training, from normal images to a checkpoint with its decision threshold.

Every sample follows from (seed, position) alone, so a resumed run ends with the same weights as an uninterrupted one,
and several processes see together what one alone would.
"""

import contextlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from stlm_edge import progress
from stlm_edge.data.batches import AnomalousImages, Images, batches
from stlm_edge.data.rotation import is_rotated
from stlm_edge.data.textures import any_of, folder_of, patches_of, procedural
from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import replacing
from stlm_edge.model import STLM, checkpoint
from stlm_edge.model.stlm import Maps
from stlm_edge.runtimes.torch import run_model
from stlm_edge.teachers import Teacher, open_teacher
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.teachers.sam import Sam
from stlm_edge.threshold import calibrate, judge
from stlm_edge.training import run_folder
from stlm_edge.training.allocator import keep_freed_memory, return_freed_memory
from stlm_edge.training.feature_cache import FeatureCache
from stlm_edge.training.job import Job, category_of, config_of, digest, initialise, settings_of, split
from stlm_edge.training.launcher import open_fabric, report_errors_once
from stlm_edge.training.loggers import open_logger
from stlm_edge.training.onednn import ByOneDNN
from stlm_edge.training.recipes import Recipe, for_teacher
from stlm_edge.training.step import (
    CleanTargets,
    TrainingStep,
    freeze,
    image_targets,
    make_optimisers,
    plain_maps,
    schedule,
    set_rates,
)
from stlm_edge.training.validation import Validation

LOG_EVERY = 10
LONG = 3600  # seconds; a longer training prints a warning
PATIENT_VALIDATIONS = 20  # at least, with --patience


@report_errors_once()
def train(job: Job, out: Path, resume: bool = False) -> Path:
    """Train a model, choose its decision threshold and write the run folder `out`; return the checkpoint's path.

    Started in several processes (by torchrun, or by `launcher.supervise`), each takes its share of every batch and the
    first one writes. With `resume`, an interrupted run is continued from the last saved step.

    Raises UsageError where the job, the images or `out` cannot be used, and JobError where the training fails.
    """
    # The job: images, textures, number of steps
    job = replace(job, recipe=for_teacher(job.recipe, job.teacher == EfficientNetLite0.name))
    settings = settings_of(job)
    finished = out / run_folder.CHECKPOINT
    if resume and finished.exists():
        run_folder.compare(out, settings)
        _compare_false_alarm_rate(finished, job.false_alarm_rate)
        return finished
    held_out_paths, training_paths = split(job)
    recipe, images, held_out = job.recipe, Images(training_paths, job.size), Images(held_out_paths, job.size)
    total = recipe.length
    if recipe.unit == "epochs":
        total = math.ceil(recipe.length * len(images) / recipe.batch)
    settings |= {
        "training_images": len(images),
        "held_out_images": len(held_out),
        "data_digest": digest([*training_paths, *held_out_paths]),
        "steps": total,
    }
    for _ in itertools.chain(held_out, images):  # all can be read
        pass
    textures = any_of(procedural, patches_of(images))
    if job.textures is not None:
        own = folder_of(job.textures)
        textures = own if recipe.name == "paper" else any_of(own, textures)  # as published: nothing else

    # The devices and the run folder
    fabric = open_fabric(recipe.bf16)
    processes, first_process, on_cpu = fabric.world_size, fabric.is_global_zero, fabric.device.type == "cpu"
    if recipe.batch % processes:
        raise UsageError(f"a batch of {recipe.batch} for {processes} processes; start a number that divides it")
    with fabric.rank_zero_first():
        run_folder.start(out, settings, resume or not first_process)
    if first_process:
        run_folder.keep_held_out(out, held_out_paths, textures, job.seed)

    # The network and its teacher
    if on_cpu:
        keep_freed_memory()
    torch.manual_seed(job.seed)
    model = STLM(config_of(job))
    teacher = open_teacher(job.teacher, job.teacher_weights, job.network.decoder_dim)
    initialise(model, teacher, job, images)
    teacher = teacher.to(fabric.device)
    model = model.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if processes > 1 and not on_cpu:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    freeze(model, recipe)
    training_step, *optimisers = fabric.setup(TrainingStep(model, recipe), *make_optimisers(model, recipe))

    # The samples and their targets
    rotated_as = category_of(job) if recipe.rotation else None
    recurring = not is_rotated(rotated_as)
    clean_targets = CleanTargets(_clean_maps(model, teacher, recipe, recurring, fabric.device), keep=recurring)
    samples = AnomalousImages(images, textures, job.seed, recipe.pseudo_anomalies, rotated_as)
    validation = Validation(held_out, textures, job.seed)
    validate_every = max(1, total // max(recipe.validations, PATIENT_VALIDATIONS if job.patience else 0))

    # The state of an interrupted run
    first, seconds_before, waited, best = 0, 0.0, 0, 0.0
    if (out / run_folder.STATE).exists():
        state = torch.load(out / run_folder.STATE, map_location=fabric.device, weights_only=True)
        first, seconds_before, waited, best = state["step"], state["seconds"], state["waited"], state["best"]
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
    fabric.barrier()
    log = run_folder.open_log(out, first) if first_process else None
    logger = open_logger(job.logger, out, settings, first) if first_process else None

    # The steps
    workers = _workers(fabric) if job.workers is None else job.workers
    share = batches(samples, first, total, recipe.batch, fabric.global_rank, processes, workers)
    is_mixed = fabric.strategy.precision.precision != "32-true"
    fast = ByOneDNN() if on_cpu and not is_mixed else contextlib.nullcontext()
    started, number, rate = time.monotonic() - seconds_before, first, 1.0
    training_step.train()
    with progress.step("training", total, completed=first, hidden=not first_process) as advance:
        for number in range(first, total):
            before = time.monotonic() - started
            if recipe.optimiser == "adamw":
                rate = schedule(number, total)
                set_rates(optimisers, rate)
            batch, clean, masks = _next(share)
            image, mask = fabric.to_device((torch.from_numpy(batch), torch.from_numpy(masks)))
            with fast:
                of_clean = clean_targets(clean, fabric.device)
                of_image = None if recipe.plain_lr is None else image_targets(teacher, image, mask, of_clean)
                losses = training_step(image, mask, of_clean, of_image)
                loss = torch.stack(list(losses.values())).sum()
                if not math.isfinite(loss.item()):
                    raise JobError(f"step {number}: the loss is {loss.item()}; check the images, or lower the rates")
                fabric.backward(loss)
            if recipe.optimiser == "adamw":
                nn.utils.clip_grad_norm_(training_step.parameters(), 5.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            if number == first and on_cpu:
                return_freed_memory()

            done, elapsed = number + 1, time.monotonic() - started
            advance(note=f"loss {loss.item():.3f}")
            if done == first + 2 and first_process:
                _warn_of_long_training((elapsed - before) * (total - done), recipe, fabric)
            metrics: dict[str, float] = {}
            if done % validate_every == 0:
                training_step.eval()
                metrics, sheet = validation.measure(model)
                metrics = fabric.broadcast(metrics)  # batch norms differ between processes, and all must stop together
                training_step.train()
                waited, best = (0, metrics["pixel_auroc"]) if metrics["pixel_auroc"] > best else (waited + 1, best)
                if logger:
                    logger.image("validation", sheet, number)
            if number % LOG_EVERY == 0 or metrics or done == total:
                row = {"loss": loss.item(), **{name: value.item() for name, value in losses.items()}}
                row = {name: fabric.all_reduce(value, reduce_op="mean").item() for name, value in row.items()}  # type: ignore[union-attr]
                row |= {"rate": rate, **{f"validation_{name}": value for name, value in metrics.items()}}
                if log and logger:
                    print(json.dumps({"step": number, **row, "seconds": round(elapsed, 2)}), file=log, flush=True)
                    logger.metrics(row, number)
            if job.patience and waited >= job.patience:
                break
            if done % job.save_every == 0 and done < total and first_process:
                save_state(out / run_folder.STATE, model, optimisers, done, elapsed, waited=waited, best=best)

    # The decision threshold and the checkpoint
    model = model.to("cpu", memory_format=torch.contiguous_format).eval()
    provenance = {key: settings[key] for key in ("stlm_edge", "seed", "data_digest", "training_images")}
    provenance |= {
        "recipe": recipe.name,
        "steps": number + 1,
        "data": category_of(job),
        "teacher": teacher.description,
        "teacher_sha256": teacher.digest,
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started),
    }
    if log and logger:
        decision_threshold = calibrate(*judge(partial(run_model, model), held_out), job.false_alarm_rate)
        checkpoint.save(finished, model, provenance, decision_threshold)
        (out / run_folder.STATE).unlink(missing_ok=True)
        log.close()
        logger.close()
    fabric.barrier()
    return finished


def save_state(
    path: Path, model: STLM, optimisers: list[torch.optim.Optimizer], step: int, seconds: float, **more: Any
) -> None:
    """Save the state of a training for --resume. Raises JobError when it cannot be written."""
    state = {"step": step, "seconds": seconds, "model": model.state_dict(), **more}
    try:
        with replacing(path) as temporary:
            torch.save(state | {"optimisers": [optimiser.state_dict() for optimiser in optimisers]}, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when the disk is full
        reason = getattr(error, "strerror", None) or "disk full?"
        raise JobError(f"{path}: cannot be written ({reason}); free some space and continue with --resume") from None


def _compare_false_alarm_rate(finished: Path, rate: float) -> None:
    chosen = checkpoint.load(finished).decision_threshold.false_alarm_rate
    if chosen != rate:
        raise UsageError(
            f"{finished}: its threshold is for --false-alarm-rate {chosen:g}, found {rate:g}; resume with the same "
            "rate, or choose a bundle's threshold again by stlm-calibrate"
        )


def _clean_maps(
    model: STLM, teacher: Teacher, recipe: Recipe, recurring: bool, device: torch.device
) -> Callable[[np.ndarray], Maps]:
    """Return the function from a clean image, S×S×3 uint8, to its targets; SAM's are kept for `recurring` images."""
    if recipe.denoising_target == "plain":
        return lambda image: plain_maps(model, torch.from_numpy(image)[None].to(device))
    if recurring and isinstance(teacher, Sam):
        return FeatureCache(teacher)
    return lambda image: teacher(torch.from_numpy(image)[None].to(device))


def _workers(fabric: Fabric) -> int:
    """Return 0 on a CPU, where they would take the training's own cores; on GPUs up to 8 for each process."""
    if fabric.device.type == "cpu":
        return 0
    return max(1, min(8, (os.cpu_count() or 2) // fabric.world_size - 1))


def _next(samples: Iterator[Any]) -> Any:
    try:
        return next(samples)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        died = "a DataLoader worker died (out of memory?)"
        raise JobError(f"{died}; free some memory and continue with --resume") from None


def _warn_of_long_training(seconds: float, recipe: Recipe, fabric: Fabric) -> None:
    if seconds > LONG:
        length = f"{seconds / 3600:.0f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
        advice = "; --recipe quick takes minutes" if recipe.name != "quick" and fabric.device.type == "cpu" else ""
        device = fabric.device.type.upper()
        print(f"warning: the training will take about {length} on this {device}{advice}", file=sys.stderr)
