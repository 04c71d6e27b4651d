"""stlm-predict: print the verdict on images, one line each, and write heatmaps of the defects."""

import argparse
import contextlib
import glob
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stlm_edge import heatmap
from stlm_edge.bundle import open_bundle
from stlm_edge.commands.parser import CommandParser, needs_extra
from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.files import replacing
from stlm_edge.images import is_image, list_images, load, read_image
from stlm_edge.runtimes import Runtime
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.verdict import verdict_of

EXAMPLE = """examples:
  stlm-predict --bundle bundles/cpu-int8 part.png more/ 'shift-*/cam1_*.jpg' --out heatmaps
  stlm-predict --bundle bundles/cpu-int8 --watch /var/line3/incoming --json
exit code: 0 when every image was judged, whatever the verdicts; 1 when some could not be; 2 when none could"""
POLL_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-predict."""
    options = parser().parse_args(arguments)
    with exit_with_one_line():
        _check(options)
        paths = _expand(options.images)
        judge = Judge(options)
        if len(paths) == 1 and not options.watch:
            judge.judge(paths[0], paths[0].name)
            return
        failures = judge.judge_all(_named(paths))
        if options.watch:
            with contextlib.suppress(KeyboardInterrupt):
                judge.judge_all((path, path.name) for path in arrivals(Path(options.watch)))
        if failures:
            raise JobError(f"{failures} of {len(paths)} images could not be judged")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = CommandParser("stlm-predict", "Print the verdict on each image, with score and threshold.", EXAMPLE)
    add = command.add_argument
    model = command.add_mutually_exclusive_group(required=True)
    model.add_argument("--bundle", metavar="B", help="a bundle's folder")
    model.add_argument("--checkpoint", metavar="F", help="a trained model's .safetensors (needs stlm-edge[train])")
    add("images", nargs="*", metavar="IMAGE", help="a file, a folder, or a quoted pattern; ** matches subfolders")
    add("--out", metavar="DIR", help="write each image overlaid with its heatmap as DIR/<name>.heatmap.png")
    add("--watch", metavar="DIR", help="judge the images of a folder, then those that arrive, until Ctrl-C")
    add("--threads", type=int, metavar="N", help="threads of the runtime (default: one per physical core)")
    add("--json", action="store_true", help="print one JSON object per image and line, and nothing else")
    return command


def _check(options: argparse.Namespace) -> None:
    if not (options.images or options.watch):
        raise UsageError("no image: give files, folders, patterns or --watch DIR")
    if options.out is None:
        return
    folder = Path(options.out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file; --out expects a folder")
    if folder.resolve() in (Path(source).resolve() for source in (*options.images, options.watch) if source):
        raise UsageError(f"{folder}: --out holds the images, heatmaps would be taken for images; choose another")


def _expand(arguments: Iterable[str]) -> list[Path]:
    """Return the files, each once, in the order of the arguments; those of a folder or pattern by name."""
    paths: list[Path] = []
    for text in arguments:
        if Path(text).is_dir():
            paths += list_images(text)
        elif glob.has_magic(text) and not Path(text).exists():
            names = glob.glob(text, recursive=True)  # noqa: PTH207, Path.glob takes no absolute pattern
            matches = sorted(path for path in map(Path, names) if path.is_file())
            if not matches:
                raise UsageError(f"{text}: no file matches this pattern")
            paths += matches
        else:
            paths.append(Path(text))
    return list(dict.fromkeys(paths))


def _named(paths: list[Path]) -> Iterator[tuple[Path, str]]:
    """Yield each path with a name for its heatmap, numbered where several files have the same name."""
    names = [path.name for path in paths]
    for number, path in enumerate(paths, 1):
        yield path, path.name if names.count(path.name) == 1 else f"{number:04}-{path.name}"


class Judge:
    """Judges images with the model of the command line, prints verdicts and writes heatmaps."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.runtime, self.decision_threshold = _open(options)
        self.out = options.out and Path(options.out)
        self.as_json = options.json

    def judge_all(self, images: Iterable[tuple[Path, str]]) -> int:
        """Judge images, and return how many failed, each with one line on standard error."""
        failures = 0
        for path, name in images:
            try:
                self.judge(path, name)
            except (UsageError, JobError) as error:
                failures += 1
                print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
        return failures

    def judge(self, path: Path, name: str) -> None:
        """Print the verdict on an image, and write its heatmap as `name`.heatmap.png if --out is given."""
        image = read_image(path)
        verdict = verdict_of(self.runtime.run(load(image, self.runtime.size)), self.decision_threshold.value)
        shown = self.out and self.out / f"{name}.heatmap.png"
        if shown:
            shown.parent.mkdir(parents=True, exist_ok=True)
            try:
                with replacing(shown) as temporary:
                    heatmap.overlay(image, verdict.map, self.decision_threshold).save(temporary, "PNG")
            except OSError as error:
                raise OSError(error.errno, error.strerror or str(error), str(shown)) from None
        if self.as_json:
            values = {"anomalous": verdict.anomalous, "score": verdict.score, "threshold": verdict.threshold}
            print(json.dumps({"image": str(path), **values, "heatmap": shown and str(shown)}), flush=True)
        else:
            word = "ANOMALOUS" if verdict.anomalous else "normal"
            print(f"{word:<9}  score {verdict.score:.4f}  threshold {verdict.threshold:.4f}  {path}", flush=True)


def _open(options: argparse.Namespace) -> tuple[Runtime, DecisionThreshold]:
    if options.bundle:
        bundle = open_bundle(options.bundle, threads=options.threads)
        return bundle.runtime, bundle.manifest.decision_threshold
    with needs_extra("train", "--checkpoint"):
        from stlm_edge.runtimes.torch import Torch
    trained = Torch(options.checkpoint, options.threads)
    return trained, trained.decision_threshold


def arrivals(folder: Path, poll_seconds: float = POLL_SECONDS) -> Iterator[Path]:
    """Yield each image file of a folder once, those already there first, oldest first, without end.

    A file is yielded when it is not empty and its size and time stayed the same for `poll_seconds`; a file that is
    written again is yielded again.

    Raises:
        UsageError: There is no such folder.
        JobError: The folder disappears.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder to watch; create it first")
    before: dict[Path, tuple[int, int]] = {}
    done: dict[Path, tuple[int, int]] = {}
    while True:
        now = _times_and_sizes(folder)
        done = {path: state for path, state in done.items() if path in now}
        for path, state in now.items():
            if state[1] and before.get(path) == state and done.get(path) != state:
                done[path] = state
                yield path
        before = now
        time.sleep(poll_seconds)


def _times_and_sizes(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return time (ns) and size (bytes) of each image file, oldest first."""
    states = {}
    try:
        paths = [path for path in folder.iterdir() if is_image(path)]
    except OSError as error:
        raise JobError(f"{folder}: can no longer be watched ({error.strerror})") from None
    for path in paths:
        with contextlib.suppress(OSError):  # deleted meanwhile
            status = path.stat()
            states[path] = (status.st_mtime_ns, status.st_size)
    return dict(sorted(states.items(), key=lambda item: (item[1][0], item[0])))


if __name__ == "__main__":
    main()
