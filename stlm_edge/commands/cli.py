"""The commands that train, evaluate and export: `stlm-train`, `stlm-eval`, `stlm-export`.

They need `pip install "stlm-edge[export]"`; a device's commands (`stlm-predict`, `stlm-calibrate`, `stlm-bench`) don't.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from stlm_edge.errors import UsageError, exit_with_one_line

try:
    import typer
    from rich.console import Console
except ImportError:
    on_device = "; to build an engine: python -m stlm_edge.runtimes.tensorrt --bundle B"
    print(
        f'error: {Path(sys.argv[0]).name} needs more than a device does: pip install "stlm-edge[export]"'
        f"{on_device if '--build-engine' in sys.argv else ''}",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

Data = Annotated[Path, typer.Option(help="Folder: a published data set, or plain images.", show_default=False)]
Category = Annotated[str | None, typer.Option(help="Category of a data set that has several.", show_default=False)]
OneOrAll = Annotated[
    str | None, typer.Option(help="Category of a data set that has several; all: one after the other.")
]
Format = Annotated[
    str | None,
    typer.Option(
        help="Layout of the data: visa, dagm, btad, kolektor, mvtec or plain (default: seen by looking).",
        show_default=False,
    ),
]
Devices = Annotated[int, typer.Option(help="GPUs, or processes on a CPU, that share the work.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def _train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder to write.", show_default=False)],
    category: OneOrAll = None,
    format: Format = None,
    recipe: Annotated[
        Literal["quick", "standard", "paper"], typer.Option(help="quick: minutes on a CPU; paper: the published one.")
    ] = "quick",
    size: Annotated[
        int | None, typer.Option(help="Side of the image, a multiple of 32 (default: the recipe's).")
    ] = None,
    teacher: Annotated[str, typer.Option(help="Frozen teacher of both streams.")] = "efficientnet-lite0",
    teacher_weights: Annotated[
        Path | None, typer.Option(help="The teacher's published weights (default: downloaded once).")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="What both streams begin from: generic, random, vit_t (MobileSAM's weights), or a start's file "
            "(default: the recipe's).",
            show_default=False,
        ),
    ] = None,
    textures: Annotated[
        Path | None, typer.Option(help="Folder of foreign textures (such as DTD) for pseudo-anomalies.")
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share of the normal images held out, for threshold and validation.")
    ] = 0.15,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many validations without a better one.", min=1)
    ] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of good parts that may be called anomalous.")] = 0.01,
    longer: Annotated[float, typer.Option(help="Multiply the recipe's steps.", min=0.001, max=1000)] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed and machine, same weights.", min=0)] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    devices: Devices = 1,
    curves: Annotated[
        Literal["tensorboard", "wandb"], typer.Option(help="Where curves and images of the training go.")
    ] = "tensorboard",
    as_json: AsJson = False,
) -> None:
    """Train STLM on images of good parts; with --category all, a model for each category into OUT/<category>.

    Example: stlm-train --data images/bottle --recipe quick --size 224 --out runs/bottle
    """
    from stlm_edge.training import launcher
    from stlm_edge.training.job import Job
    from stlm_edge.training.recipes import RECIPES
    from stlm_edge.training.train import train

    if launcher.is_supervisor_needed(devices):
        raise SystemExit(launcher.supervise(devices))
    if not 0 < false_alarm_rate < 0.5:
        raise UsageError(f"--false-alarm-rate {false_alarm_rate}: expected a share between 0 and 0.5, such as 0.01")
    settings = RECIPES[recipe] if longer == 1.0 else RECIPES[recipe].longer(longer)
    job = Job(
        data=data,
        recipe=settings,
        size=size or settings.size,
        category=category,
        format=format,
        seed=seed,
        teacher=teacher,
        teacher_weights=teacher_weights,
        init=init,
        textures=textures,
        val_fraction=val_fraction,
        patience=patience,
        false_alarm_rate=false_alarm_rate,
        curves=curves,
    )
    if category == "all":
        from stlm_edge.commands.all_categories import train_all
        from stlm_edge.evaluation import all_gather

        checkpoints = train_all(job, out, resume)
        if as_json and all_gather.rank() == 0:
            _print_json({name: str(path) for name, path in checkpoints.items()})
        elif all_gather.rank() == 0:
            print("\n".join(str(path) for path in checkpoints.values()))
        return
    checkpoint_path = train(job, out, resume)
    from stlm_edge.model import checkpoint

    decision_threshold = checkpoint.load(checkpoint_path).decision_threshold
    assert decision_threshold is not None
    if as_json:
        _print_json(
            {
                "checkpoint": str(checkpoint_path),
                "threshold": decision_threshold.value,
                "images": decision_threshold.images,
            }
        )
        return
    found = f"threshold {decision_threshold.value:.4f} from {decision_threshold.images} held-out normal images"
    print(f"{checkpoint_path}: {found} ({decision_threshold.method})")


def _evaluate(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for metrics.json and the contact sheets.", show_default=False)],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Trained model to evaluate (with --category all, the folder of runs).", show_default=False),
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Packed model to evaluate.", show_default=False)] = None,
    category: OneOrAll = None,
    format: Format = None,
    devices: Devices = 1,
    as_json: AsJson = False,
) -> None:
    """Measure a trained or packed model on labelled images; with --category all, each category's own model.

    Example: stlm-eval --checkpoint runs/bottle/checkpoint.safetensors --data images/bottle --out evaluation
    """
    from stlm_edge.commands import all_categories
    from stlm_edge.data.datasets import test_samples
    from stlm_edge.evaluation import all_gather
    from stlm_edge.evaluation.evaluate import evaluate, summary
    from stlm_edge.training import launcher

    if (checkpoint is None) == (bundle is None):
        raise UsageError("give either --checkpoint or --bundle")
    if launcher.is_supervisor_needed(devices):
        raise SystemExit(launcher.supervise(devices, "start it again"))
    with all_gather.joined():
        if category == "all":
            if checkpoint is None:
                raise UsageError("--category all: give --checkpoint, the folder that holds a run for each category")
            metrics = all_categories.evaluate_all(checkpoint, data, format, out)
            table = all_categories.summary(metrics)
        elif checkpoint is not None:
            metrics = all_categories.evaluate_checkpoint(checkpoint, data, category, format, out)
            table = summary(metrics)
        else:
            import stlm_edge

            assert bundle is not None
            opened = stlm_edge.open(bundle)
            size, decision_threshold = opened.manifest.input.size, opened.manifest.decision_threshold
            samples = test_samples(data, category, format)
            metrics = evaluate(opened.runtime, samples, size, decision_threshold, out, str(bundle))
            table = summary(metrics)
        if all_gather.rank() > 0:
            return
    if as_json:
        _print_json(metrics)
    else:
        Console().print(table)


def _export(
    target: Annotated[str, typer.Option(help="Device class: cpu, jetson, desktop-gpu, android, ios or web.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Trained model (default: the newest run's).", show_default=False)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16, int8, palette6 (ios) (default: the target's; for web all, with a page around them).",
            show_default=False,
        ),
    ] = None,
    via: Annotated[
        str | None,
        typer.Option(
            help="Another converter: openvino (for cpu), torch-tensorrt (for desktop-gpu).", show_default=False
        ),
    ] = None,
    decision_threshold: Annotated[
        Path | None, typer.Option(help="Normal images for quantization (default: the run's own).", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Labelled images: accuracy joins the parity gate.", show_default=False)
    ] = None,
    category: Category = None,
    format: Format = None,
    out: Annotated[Path | None, typer.Option(help="Bundle folder (default: bundles/<target>-<precision>).")] = None,
    allow_parity_loss: Annotated[
        bool, typer.Option("--allow-parity-loss", help="Write a bundle that fails the gate, and mark it.")
    ] = False,
    build_engine: Annotated[
        bool, typer.Option("--build-engine", help="On the device: build the TensorRT engine of the bundle at --out.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that stands at --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pack a trained model for a device, and prove that it still says what it said.

    A page (--target web) has onnxruntime-web in it, which npm fetches once.

    Example: stlm-export --target cpu --precision int8 --checkpoint runs/bottle/checkpoint.safetensors --out B
    On a Jetson, for a bundle that was copied there: stlm-export --target jetson --build-engine --out B
    """
    from stlm_edge.export.web_site import add_page, check_site

    if build_engine:
        _build_engine(target, out)
        return
    from stlm_edge.export.pipeline import BUNDLES, export_all

    folder = out or BUNDLES / target
    is_site = target == "web" and precision is None
    if is_site:
        check_site(folder, force)
    done = export_all(
        target,
        precision,
        out,
        checkpoint=checkpoint,
        via=via,
        quantization_folder=decision_threshold,
        data=data,
        category=category,
        format=format,
        allow_parity_loss=allow_parity_loss,
        force=force,
    )
    if is_site:
        add_page(folder, [bundle.folder for bundle in done])
    if as_json:
        figures = [bundle.figures() for bundle in done]
        _print_json(figures if len(figures) > 1 else figures[0])
    else:
        print("\n\n".join(bundle.describe() for bundle in done))
        if is_site:
            print(f"\n{folder}: a page for any static server; to try it: python -m http.server --directory {folder}")


def _build_engine(target: str, out: Path | None) -> None:
    from stlm_edge.export import targets
    from stlm_edge.runtimes.tensorrt import build_engine

    row, _ = targets.find(target)
    if row.runtime != "tensorrt":
        raise UsageError(f"target {target}: has no engine to build; --build-engine is for jetson and desktop-gpu")
    if out is None:
        raise UsageError("--build-engine: name the bundle by --out; it is exported first, on any machine")
    print(f"engine of {out} for this GPU: {build_engine(out)}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def _command(function: Any, interrupted: str) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(function)

    def main() -> None:
        with exit_with_one_line(interrupted):
            try:
                app(standalone_mode=False)
            except typer.Abort:
                raise KeyboardInterrupt from None
            except Exception as error:
                if hasattr(error, "format_message"):  # click's own usage errors
                    raise UsageError(f"{error.format_message()} (see --help)") from None
                raise

    return main


train = _command(_train, "interrupted; the same command with --resume goes on from the last saved step")
evaluate = _command(_evaluate, "interrupted; no metrics.json was written")
export = _command(_export, "interrupted; no bundle was written")
