"""STLM beside EfficientAD, PatchCore and AnomalyDINO by anomalib, and beside its own published inference, in one run.

    python benchmarks/peers.py --checkpoint F --data DIR --out F.json [--size 256 ...] [--work build/peers]
    python benchmarks/peers.py --render F.json        # its table into benchmarks/results/README.md

The peers live in an environment of their own, `--work`/environment, which the first run makes by pip from
peers-requirements.txt. There each is fitted and exported by anomalib (`peers_anomalib.py`); interrupted, the same
command takes up with the next one. int8 of a peer is onnxruntime's static quantization of convolutions and products:
QDQ, u8 activations, s8 weights by channel, ranges of the held-out images. STLM is packed by the steps of
`stlm-export`, the first that holds.

Everything is then timed by the same onnxruntime with one thread, each network in a process of its own, taking turns
(A B C A B C …), so that a busy machine slows all alike; a ratio is the median of the ratios within each turn. A query
is from S×S×3 uint8 in memory to map and score. Parity is one rule for all: threshold from each network's own scores of
the held-out normal images, then the verdicts and maps of its ONNX file beside those in torch.
"""

import argparse
import datetime
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

from stlm_edge.bench.machine import system
from stlm_edge.bench.percentiles import percentile
from stlm_edge.bundle.golden import GoldenCandidate
from stlm_edge.bundle.parity import compare, problems
from stlm_edge.data.datasets import Sample, test_samples, training_samples
from stlm_edge.data.sample import mask_of
from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.evaluation.metrics import PixelMetrics, image_auroc
from stlm_edge.export.gate import METRICS, Metrics
from stlm_edge.export.ladder import CONVERSIONS, ConversionRequest
from stlm_edge.export.pipeline import flops
from stlm_edge.export.quantization_set import quantization_set
from stlm_edge.files import replacing, write_text
from stlm_edge.images import load
from stlm_edge.model import STLM, checkpoint
from stlm_edge.progress import step
from stlm_edge.runtimes.torch import run_model
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.threshold import DecisionThreshold, calibrate

HERE = Path(__file__).parent
README = HERE / "results" / "README.md"
BEGIN, END = "<!-- made by benchmarks/peers.py: begin -->\n", "<!-- end of peers -->\n"
PEERS = ("EfficientAD-S", "EfficientAD-M", "PatchCore", "PatchCore, EfficientNet-Lite0", "AnomalyDINO-S")
HELD_OUT, JUDGED = 10, 24  # images: for thresholds and int8 ranges, for parity
PUBLISHED_SIZE, JUDGED_THERE = 1024, 4
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
"""Large blocks go back to the system: PatchCore's coreset leaves holes of 20 MB in glibc's heap, thousands of them."""
PACKAGES = ("stlm-edge", "torch", "onnx", "onnxruntime", "numpy")
CONDITIONS = (
    "one thread; each query from an S×S×3 uint8 image in memory to map and score, decoding and resizing left out",
    "for the peers: images are turned into their float32 input by numpy within the time; STLM's graph takes uint8",
    "for the peers: their files take any batch, as anomalib exports them, STLM's takes one image, and so do "
    "PatchCore's, whose file for any batch takes images by twos only",
    "for STLM: its graph was shaped for onnxruntime by this project; the peers' are what anomalib's export gives",
    "for STLM: its int8 may keep layers in float until the gate holds; a peer's int8 is one try",
    "for PatchCore and AnomalyDINO: their time and size grow with the images that they were fitted on, which were "
    "fewer here (`images`) than the 60 to 391 of MVTec AD's categories",
    "against STLM: at 256 its windows of 7 and 14 don't tile the grid and are padded; at 224 they do",
    "against EfficientAD: it does not run below 256; it was published for a GPU, which this is not",
    "anomalib's own int8 goes by OpenVINO and NNCF, and was not measured",
    "random weights: speed and size don't depend on them; int8 verdicts and parity of such a row say little",
    "published inference: our network and weights with the published order of work in eager torch, whose import "
    "is in its memory; onnxruntime instead of torch is part of what the packed file gains",
)


@dataclass
class Row:
    """Measurements of one network in one precision at one size; None for what was not measured."""

    name: str
    precision: str
    size: int
    weights: str
    kind: str = "anomalib"
    failure: str | None = None
    size_mb: float | None = None
    parameters: int | None = None
    gflops: float | None = None
    memory_bank: list[int] | None = None
    parity: dict[str, Any] | None = None
    gate: list[str] | None = None
    accuracy: Metrics | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    ratio: float | None = None
    peak_memory_mb: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.name}, {self.precision}, {self.size}"


@dataclass(frozen=True)
class Images:
    """Images of one size on the disk: `file` holds the judged ones, then the held-out ones, N×S×S×3 uint8."""

    folder: Path
    size: int
    samples: list[Sample]
    judged: list[np.ndarray]
    held_out: list[np.ndarray]

    @property
    def file(self) -> Path:
        return self.folder / "images.npy"


@dataclass(frozen=True)
class Outputs:
    """Maps N×S×S float32 and scores, of the judged images and then of the held-out ones."""

    maps: np.ndarray
    scores: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path, help="labelled images, as for stlm-eval")
    parser.add_argument("--size", type=int, nargs="+", default=[256], metavar="S", help="of the peers (default: 256)")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="turns, after 2 untimed (default: 20)")
    parser.add_argument("--fit", type=int, default=40, metavar="N", help="images the peers are fitted on (default: 40)")
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="the peers' environment and files")
    parser.add_argument("--out", type=Path, metavar="F", help="JSON file to write")
    parser.add_argument("--render", type=Path, metavar="F", help="write the table of this JSON file into the README")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with exit_with_one_line("interrupted; the same command goes on with the peers that are not fitted yet"):
        if options.render:
            write_text(README, with_table(README.read_text("utf-8"), read(options.render)))
            return
        check(options)
        result = measure(options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(options.out) as temporary:
            temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        print("\n".join(table(result)))


def check(options: argparse.Namespace) -> None:
    missing = [name for name in ("checkpoint", "data", "out") if getattr(options, name) is None]
    if missing:
        raise UsageError(f"--{' and --'.join(missing)} not given; expected --checkpoint F --data DIR --out F.json")
    for name in ("rounds", "fit"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name}: found {getattr(options, name)}, expected at least 1")
    for size in options.size:
        if size % 32 or not 32 <= size <= 512:
            raise UsageError(f"--size: found {size}, expected a multiple of 32 up to 512, such as 256")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    before = system.moment()
    trained = checkpoint.load(options.checkpoint)
    own = trained.model.config.size
    work = options.work.absolute()
    python, why_not = environment(work)
    rows: list[Row] = []
    files: dict[str, Path] = {}
    for size in sorted({own, *options.size, PUBLISHED_SIZE}):
        images = prepare(options.data, size, options.fit, work)
        stlm(trained, images, files, rows)
        for name in PEERS if size in options.size else ():
            peer(name, images, python, why_not, files, rows)
    every = {row.size: work / f"images-{row.size}" / "images.npy" for row in rows}
    taking_turns(rows, files, every, options.rounds)
    return {
        "command": f"python benchmarks/peers.py --checkpoint F --data {options.data.name} --out F.json "
        f"--size {' '.join(map(str, options.size))} --fit {options.fit} --rounds {options.rounds}",
        "date": datetime.date.today().isoformat(),
        "machine": asdict(system.describe(PACKAGES, before)),
        "peers_environment": versions(python),
        "checkpoint": {name: trained.provenance.get(name) for name in ("recipe", "steps", "teacher", "seed")},
        "threads": 1,
        "rounds": options.rounds,
        "images": {"held out": HELD_OUT, "fitted": options.fit, "judged": JUDGED, "judged at 1024": JUDGED_THERE},
        "conditions": CONDITIONS,
        "candidates": candidates(python, work, max(options.size)),
        "rows": [asdict(row) for row in rows],
    }


def environment(work: Path) -> tuple[Path | None, str | None]:
    """The Python that has anomalib, made where it is missing; or None, and why it can't be had."""
    wanted, done = HERE / "peers-requirements.txt", work / "environment" / "peers-requirements.txt"
    python = done.parent / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if done.is_file() and done.read_bytes() == wanted.read_bytes():
        return python, None
    with step("installing anomalib into its own environment (some minutes, 6 GB)"):
        venv.create(done.parent, clear=True, with_pip=True)
        completed = subprocess.run([python, "-m", "pip", "install", "-q", "-r", wanted], capture_output=True, text=True)
    if completed.returncode:
        return None, f"not installed: {last_line(completed.stderr)}"
    shutil.copy(wanted, done)
    return python, None


def versions(python: Path | None) -> dict[str, str]:
    names = ("anomalib", "torch", "torchvision", "timm", "onnx", "onnxscript")
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    if python is None:
        return {}
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def candidates(python: Path | None, work: Path, size: int) -> list[dict[str, Any]]:
    """Return the operations of anomalib's models later than EfficientAD, from which the leanest is chosen."""
    found = work / f"candidates-{size}.json"
    if python is None:
        return []
    if not found.is_file():
        with step("counting the operations of anomalib's newer models"):
            command = [python, HERE / "peers_anomalib.py", "candidates", "--size", str(size)]
            completed = subprocess.run(command, capture_output=True, text=True)
        if completed.returncode:
            raise JobError(f"anomalib's models could not be counted: {last_line(completed.stderr)}")
        write_text(found, completed.stdout.strip().splitlines()[-1])
    return json.loads(found.read_text("utf-8"))


def prepare(data: Path, size: int, fit: int, work: Path) -> Images:
    """Write the images at S×S, in MVTec AD's layout for anomalib; held-out ones are no part of what it fits."""
    training, every = training_samples(data), test_samples(data)
    if len(training) < HELD_OUT + 2:
        raise UsageError(f"{data}: {len(training)} training images, expected at least {HELD_OUT + 2}")
    count = JUDGED_THERE if size == PUBLISHED_SIZE else JUDGED
    chosen = [every[index] for index in np.unique(np.linspace(0, len(every) - 1, count).astype(int))]
    if len({sample.anomalous for sample in chosen}) < 2:
        raise UsageError(f"{data}: its test images are all of one class, expected normal and anomalous ones")
    held_out = [load(sample.image, size) for sample in training[:HELD_OUT]]
    judged = [load(sample.image, size) for sample in chosen]
    images = Images(work / f"images-{size}", size, chosen, judged, held_out)
    digest = hashlib.sha256(np.stack(judged + held_out).tobytes()).hexdigest() + f" {fit}"
    marker = images.folder / "digest"
    if marker.is_file() and marker.read_text() == digest:
        return images
    shutil.rmtree(images.folder, ignore_errors=True)
    fitted = [training[index] for index in np.unique(np.linspace(HELD_OUT, len(training) - 1, fit).astype(int))]
    with step(f"writing images at {size}"):
        for number, image in enumerate(held_out):
            keep(image, images.folder / "held-out" / f"{number:04}.png")
        for number, sample in enumerate(fitted):
            keep(load(sample.image, size), images.folder / "data" / "train" / "good" / f"{number:04}.png")
        for number, (sample, image) in enumerate(zip(chosen, judged, strict=True)):
            kind = sample.defect if sample.anomalous else "good"
            keep(image, images.folder / "data" / "test" / kind / f"{number:04}.png")
            if sample.mask is not None:
                folder = images.folder / "data" / "ground_truth" / kind
                keep(mask_of(sample, size), folder / f"{number:04}.png")
        np.save(images.file, np.stack(judged + held_out))
        torch.save(EfficientNetLite0().backbone.state_dict(), images.folder / "lite0.pt")
        marker.write_text(digest)
    return images


def keep(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, compress_level=1)


def stlm(trained: checkpoint.Checkpoint, images: Images, files: dict[str, Path], rows: list[Row]) -> None:
    """Pack the checkpoint at this size in fp32 and int8; at 1024 the published inference joins."""
    size = images.size
    model = STLM(replace(trained.model.config, size=size)).eval()
    model.load_state_dict(trained.model.state_dict())
    every = images.judged + images.held_out
    with step(f"STLM at {size} in torch", len(every)) as advance:
        found = []
        for image in every:
            found.append(run_model(model, image))
            advance()
    outputs = Outputs(np.stack([anomaly_map for anomaly_map, _ in found]), np.array([score for _, score in found]))
    decision_threshold = calibrated(outputs, images)
    folder = images.folder / "stlm"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    plain = Row("STLM", "fp32", size, "the checkpoint's", "packed")
    plain.parameters = sum(parameter.numel() for parameter in model.parameters())
    plain.gflops = flops(model) / 1e9
    if size == PUBLISHED_SIZE:
        row = replace(plain, name="STLM, published inference", kind="published", notes=[])
        files[row.label] = folder / "checkpoint.safetensors"
        checkpoint.save(files[row.label], model, {}, decision_threshold)
        row.size_mb = megabytes(files[row.label])
        judge(row, files[row.label], images, outputs, decision_threshold)
        rows.append(row)
    for precision in ("fp32", "int8"):
        row = replace(plain, precision=precision, notes=[])
        place = folder / precision
        place.mkdir()
        seen = quantization_set(images.folder / "held-out", size)[0]
        request = ConversionRequest(model, precision, place / "model.onnx", decision_threshold, {}, seen)
        with step(f"packing STLM at {size} in {precision}"):
            for made in CONVERSIONS["onnxruntime"].convert(request):
                if made.precision != precision:
                    continue
                row.notes = [f"in float: {', '.join(made.kept_in_float)}"] if made.kept_in_float else []
                judge(row, made.path, images, outputs, decision_threshold)
                files[row.label] = made.path
                row.size_mb = megabytes(made.path)
                if not row.gate:
                    break
        rows.append(row)


def peer(
    name: str, images: Images, python: Path | None, why_not: str | None, files: dict[str, Path], rows: list[Row]
) -> None:
    """Fit and export one peer, unless that was done before, quantize it, and compare both with its own torch."""
    size, out = images.size, images.folder / name
    plain = Row(name, "fp32", size, "unknown", failure=why_not)
    if python is not None and not (out / "about.json").is_file():
        shutil.rmtree(out, ignore_errors=True)
        command = [python, HERE / "peers_anomalib.py", name, "--size", str(size), "--data", images.folder / "data"]
        command += ["--images", images.file, "--backbone", images.folder / "lite0.pt", "--out", out]
        with step(f"fitting and exporting {name} at {size}"):
            completed = subprocess.run(command, capture_output=True, text=True, env=os.environ | RETURNED)
        if completed.returncode:
            killed = f"ended by signal {-completed.returncode}; too little memory?" if completed.returncode < 0 else ""
            plain.failure = f"not exported: {killed or last_line(completed.stderr)}"
    if plain.failure:
        rows += [plain, replace(plain, precision="int8", notes=[])]
        return
    about = json.loads((out / "about.json").read_text("utf-8"))
    plain.weights, plain.parameters, plain.memory_bank = about["weights"], about["parameters"], about["memory_bank"]
    plain.gflops = about["flops"] / 1e9
    trained = Outputs(np.load(out / "maps.npy"), np.load(out / "scores.npy"))
    decision_threshold = calibrated(trained, images)
    exported = out / about["file"]
    for precision in ("fp32", "int8"):
        row = replace(plain, precision=precision, notes=[])
        rows.append(row)
        try:
            file = exported if precision == "fp32" else to_int8(exported, out / "int8", images)
            files[row.label] = file
            row.size_mb = megabytes(file)
            judge(row, file, images, trained, decision_threshold)
        except Exception as error:  # whatever a peer's file meets in onnxruntime is its row, not the run's end
            row.failure = " ".join(str(error).split())[-200:] or type(error).__name__
            files.pop(row.label, None)


class Ranges(CalibrationDataReader):
    def __init__(self, name: str, images: Sequence[np.ndarray]):
        scaled = (np.ascontiguousarray(p.transpose(2, 0, 1)[None], dtype=np.float32) / 255 for p in images)
        self.left = ({name: image} for image in scaled)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def to_int8(exported: Path, folder: Path, images: Images) -> Path:
    """onnxruntime's static quantization, after its own preparation of the graph."""
    import onnx

    made = folder / "model.onnx"
    if made.is_file():
        return made
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with step(f"quantizing {exported.parents[2].name}"), replacing(made) as temporary:
        prepared = folder / "prepared.onnx"
        onnx.save(onnx.load(exported), prepared)  # in one file: the preparation loses weights that stand beside it
        quant_pre_process(str(prepared), str(prepared), skip_symbolic_shape=True)
        name = onnx.load(prepared, load_external_data=False).graph.input[0].name
        quantize_static(
            str(prepared),
            str(temporary),
            Ranges(name, images.held_out),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],  # anomalib's last nodes hold NaN, which has no range
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        prepared.unlink()
    return made


def calibrated(trained: Outputs, images: Images) -> DecisionThreshold:
    held_out = slice(len(images.judged), None)
    return calibrate(trained.scores[held_out].tolist(), list(trained.maps[held_out]))


def judge(row: Row, file: Path, images: Images, trained: Outputs, decision_threshold: DecisionThreshold) -> None:
    """Fill in parity, the gate's result, and accuracy where the weights are real."""
    answers = file.parent / "answers"
    answers.mkdir(exist_ok=True)
    with Worker(row.kind, file, images.file, answers) as worker:
        worker.finish()
    maps, scores = np.load(answers / "maps.npy"), np.load(answers / "scores.npy")
    golden = [
        GoldenCandidate(str(sample.image.name), Image.fromarray(tensor), sample.anomalous, tensor, expected, score)
        for sample, tensor, expected, score in zip(
            images.samples, images.judged, trained.maps, trained.scores.tolist(), strict=False
        )
    ]
    found = list(zip(maps, scores.tolist(), strict=True))[: len(golden)]
    parity, _ = compare(golden, found, decision_threshold.value, decision_threshold.delta)
    row.parity = {name: value if np.isfinite(value) else None for name, value in asdict(parity).items()}
    row.gate = problems(parity, row.precision)
    if row.weights != "random" and images.size != PUBLISHED_SIZE:
        row.accuracy = accuracy(found, images)


def accuracy(answers: Sequence[tuple[np.ndarray, float]], images: Images) -> Metrics:
    pixels = PixelMetrics()
    for sample, (anomaly_map, _) in zip(images.samples, answers, strict=True):
        pixels.update(anomaly_map, mask_of(sample, images.size))
    found = pixels.compute()
    of_images = image_auroc([score for _, score in answers], [sample.anomalous for sample in images.samples])
    return dict(zip(METRICS, (of_images, found.pixel_auroc, found.aupro), strict=True))


class Worker:
    """peers_worker.py's process. Raises JobError when it fails."""

    def __init__(self, kind: str, file: Path, images: Path, answers: Path | None = None):
        command = [sys.executable, HERE / "peers_worker.py", kind, file, images, *([answers] if answers else [])]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._answer()

    def query(self) -> float:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()["ms"]

    def finish(self) -> float | None:
        """Its peak memory in MB."""
        assert self.process.stdin
        self.process.stdin.close()
        return self._answer()["peak_memory_mb"]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        assert self.process.stderr
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            message = " ".join(self.process.stderr.read().splitlines()[-3:])  # onnxruntime's reasons take some lines
            raise JobError(message[-300:] or f"its process ended with exit code {code}")
        return json.loads(line)


def taking_turns(rows: list[Row], files: dict[str, Path], images: dict[int, Path], rounds: int) -> None:
    """Time every row that has a file; the ratio is to STLM in fp32 at the same size."""
    timed = [row for row in rows if row.label in files]
    milliseconds: dict[str, list[float]] = {row.label: [] for row in timed}
    with ExitStack() as stack:
        workers = {
            row.label: stack.enter_context(Worker(row.kind, files[row.label], images[row.size])) for row in timed
        }
        with step(f"timing {len(timed)} in turns", 2 + rounds) as advance:
            for turn in range(-2, rounds):
                for label, worker in workers.items():
                    spent = worker.query()
                    if turn >= 0:
                        milliseconds[label].append(spent)
                advance()
        for row in timed:
            row.peak_memory_mb = workers[row.label].finish()
    for row in timed:
        own = milliseconds[row.label]
        row.p50_ms, row.p90_ms = percentile(own, 0.5), percentile(own, 0.9)
        row.ratio = ratio(own, milliseconds[f"STLM, fp32, {row.size}"])


def ratio(times: Sequence[float], of: Sequence[float]) -> float:
    """The median of the ratios within each turn."""
    return float(np.median(np.array(times) / np.array(of)))


def megabytes(file: Path) -> float:
    """With the weights that an ONNX file keeps beside itself."""
    beside = file.with_name(file.name + ".data")
    return (file.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)) / 1e6


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ")[:200] if lines else ""


def read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError:
        raise UsageError(f"{path}: not JSON; expected the file that --out of this command wrote") from None


def with_table(readme: str, result: dict[str, Any]) -> str:
    """Return README's text with a new table between its two marks. Raises UsageError where they are missing."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{README.name}: {BEGIN.strip()} and {END.strip()} were expected around its table of peers")
    return head + BEGIN + "\n".join(table(result)) + "\n" + END + tail


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "S": lambda row: str(row["size"]),
    "network": lambda row: row["name"],
    "weights": lambda row: row["weights"],
    "precision": lambda row: row["precision"],
    "p50 ms": lambda row: number(row["p50_ms"], ".0f"),
    "of STLM fp32": lambda row: number(row["ratio"], ".2f"),
    "memory MB": lambda row: number(row["peak_memory_mb"], ".0f"),
    "file MB": lambda row: number(row["size_mb"], ".1f"),
    "GFLOPs": lambda row: number(row["gflops"], ".1f"),
    "verdicts that flip, fail": lambda row: (
        row["failure"] or "{verdict_flips}, {verdict_failures} of {images}".format(**row["parity"])
    ),
    "largest map difference": lambda row: number(row["parity"] and row["parity"]["max_abs_diff"], ".1g"),
    "gate": lambda row: "not measured" if row["gate"] is None else "fails" if row["gate"] else "holds",
    "image AUROC, pixel AUROC, AUPRO": lambda row: (
        ", ".join(number(v and 100 * v, ".1f") for v in row["accuracy"].values()) if row["accuracy"] else "not compared"
    ),
}


def table(result: dict[str, Any]) -> list[str]:
    """Markdown lines, a row for each network and precision, what failed with its reason."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    return lines + ["| " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |" for row in result["rows"]]


def number(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


if __name__ == "__main__":
    main()
