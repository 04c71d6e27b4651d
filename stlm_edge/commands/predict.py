"""stlm-predict: the verdict on images, one line each, and where the defects are."""

import argparse
import glob
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from stlm_edge import heatmap
from stlm_edge.bundle import open_bundle
from stlm_edge.commands.parser import CommandParser
from stlm_edge.commands.watch import arrivals
from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.files import replacing
from stlm_edge.images import list_images, load, read_image
from stlm_edge.runtimes import Runtime
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.verdict import Verdict, verdict_of

EXAMPLE = """examples:
  stlm-predict --bundle bundles/cpu-int8 part.png more/ 'shift-*/cam1_*.jpg' --out heatmaps
  stlm-predict --bundle bundles/cpu-int8 --watch /var/line3/incoming --json
exit code: 0 when every image was judged, whatever the verdicts; 1 when some could not be; 2 when nothing could"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-predict."""
    options = parser().parse_args(arguments)
    with exit_with_one_line():
        if not (options.images or options.watch):
            raise UsageError("no image: give files, folders, patterns or --watch DIR")
        _check_out(options)
        given = _expand(options.images)
        names = [path.name for path in given]
        runtime, decision_threshold = _open(options)

        def judge(path: Path, name: str) -> None:
            image = read_image(path)
            verdict = verdict_of(runtime.run(load(image, runtime.size)), decision_threshold.value)
            shown = None
            if options.out:
                shown = Path(options.out) / f"{name}.heatmap.png"
                _write_png(shown, heatmap.overlay(image, verdict.map, decision_threshold))
            _print(path, verdict, shown, options.json)

        failures = 0
        for number, path in enumerate(given, 1):
            try:
                judge(path, path.name if names.count(path.name) == 1 else f"{number:04}-{path.name}")
            except (UsageError, JobError) as error:
                if len(given) == 1 and not options.watch:
                    raise
                failures += 1
                _complain(error)
        if options.watch:
            _watch(options.watch, judge)
        if failures:
            raise JobError(f"{failures} of {len(given)} images could not be judged")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = CommandParser("stlm-predict", "Print the verdict on each image, with score and threshold.", EXAMPLE)
    add = command.add_argument
    model = command.add_mutually_exclusive_group(required=True)
    model.add_argument("--bundle", metavar="B", help="a bundle's folder")
    model.add_argument("--checkpoint", metavar="F", help="a trained model's .safetensors (needs stlm-edge[train])")
    add("images", nargs="*", metavar="IMAGE", help="a file, a folder, or a quoted pattern; ** matches subfolders")
    add("--out", metavar="DIR", help="write each image with its heatmap laid over it as DIR/<name>.heatmap.png")
    add("--watch", metavar="DIR", help="judge the images of a folder, then those that arrive, until Ctrl-C")
    add("--threads", type=int, metavar="N", help="threads of the runtime (default: one per physical core)")
    add("--json", action="store_true", help="print one JSON object per image and line, and nothing else")
    return command


def _check_out(options: argparse.Namespace) -> None:
    if options.out is None:
        return
    folder = Path(options.out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file; --out expects a folder")
    sources = [*options.images, options.watch] if options.watch else options.images
    if folder.resolve() in (Path(source).resolve() for source in sources):
        raise UsageError(f"{folder}: --out holds the images, heatmaps would be taken for images; choose another")


def _expand(given: Iterable[str]) -> list[Path]:
    """The files that are meant, each once, in the order given; folders and patterns by name."""
    paths: list[Path] = []
    for text in given:
        if Path(text).is_dir():
            paths += list_images(text)
        elif glob.has_magic(text) and not Path(text).exists():
            found = glob.glob(text, recursive=True)  # noqa: PTH207, Path.glob takes no absolute pattern
            matches = sorted(path for path in map(Path, found) if path.is_file())
            if not matches:
                raise UsageError(f"{text}: no file matches this pattern")
            paths += matches
        else:
            paths.append(Path(text))
    return list(dict.fromkeys(paths))


def _open(options: argparse.Namespace) -> tuple[Runtime, DecisionThreshold]:
    if options.bundle:
        bundle = open_bundle(options.bundle, threads=options.threads)
        return bundle.runtime, bundle.manifest.decision_threshold
    try:
        from stlm_edge.runtimes.torch import Torch
    except ImportError as error:
        raise UsageError(f'--checkpoint needs {error.name}: pip install "stlm-edge[train]"') from None
    trained = Torch(options.checkpoint, options.threads)
    if trained.decision_threshold is None:
        raise UsageError(f"{options.checkpoint}: has no threshold; train it to the end")
    return trained, trained.decision_threshold


def _print(path: Path, verdict: Verdict, shown: Path | None, as_json: bool) -> None:
    if as_json:
        figures = {"anomalous": verdict.anomalous, "score": verdict.score, "threshold": verdict.threshold}
        print(json.dumps({"image": str(path), **figures, "heatmap": shown and str(shown)}), flush=True)
    else:
        word = "ANOMALOUS" if verdict.anomalous else "normal"
        print(f"{word:<9}  score {verdict.score:.4f}  threshold {verdict.threshold:.4f}  {path}", flush=True)


def _write_png(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary:
            image.save(temporary, "PNG")
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def _watch(folder: str, judge: Callable[[Path, str], None]) -> None:
    try:
        for path in arrivals(folder):
            try:
                judge(path, path.name)
            except (UsageError, JobError) as error:
                _complain(error)
    except KeyboardInterrupt:
        return


def _complain(error: Exception) -> None:
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
