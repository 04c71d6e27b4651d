"""Time what the exported graph's form is worth, and every format that this machine runs, at S=224 and S=448.

    python benchmarks/graph.py --out benchmarks/results/graph.json

Side by side: torch eager; onnxruntime on the plain export (batch norms merged, otherwise the model as it is), on the
rewritten one (`converters/export_form.py`), which is what ships, and on its int8 file; TFLite in fp32, with fp16
weights, and in int8. One thread, one image at a time, in turns (A B C A B C …) in one process, so that a busy or
throttled machine slows all alike; a ratio is the median of the ratios within each turn. The yardstick is the machine's
best float32 matrix product, onnxruntime's own MatMul of 1024×1024×1024, in the same turns; a share of it counts best
time against best time, a multiply-add as two operations, and of each graph the operations of the model, however many
its form saved.

Weights are random (seed 0): neither speed nor size depends on them, and parity is the export's to show. Exits 1 when a
goal is missed. The table is followed by the time of each part of the network and of each operator.
"""

import argparse
import datetime
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import onnx
import onnxruntime
import torch

from stlm_edge.bench.machine import system
from stlm_edge.bench.profile import LAYOUT, nodes_of, part_of
from stlm_edge.converters import onnx_int8, tflite
from stlm_edge.converters.export_form import fold_batch_norms
from stlm_edge.converters.onnx import exported, save, to_onnx
from stlm_edge.errors import exit_with_one_line
from stlm_edge.export.pipeline import flops
from stlm_edge.files import replacing
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.runtimes.litert import LiteRT
from stlm_edge.runtimes.onnxruntime import OnnxRuntime
from stlm_edge.threshold import calibrate

SIDES = (224, 448)
GEMM_SIDE = 1024
GEMM, EAGER = f"MatMul {GEMM_SIDE}³", "torch eager"
PLAIN, SHAPED, INT8 = "ONNX fp32, plain", "ONNX fp32, rewritten", "ONNX int8"
TFLITE, TFLITE_FP16, TFLITE_INT8 = "TFLite fp32", "TFLite fp16", "TFLite int8"
TIMES = {(SHAPED, PLAIN): 0.8, (INT8, PLAIN): 0.5, (TFLITE_INT8, TFLITE): 0.55}  # at most
SHARE = 0.85  # of the best matrix product, at least, for the shaped graph
MEGABYTES = {INT8: 22, TFLITE_FP16: 39, TFLITE_INT8: 22}  # at most, at S=224
PACKAGES = ("stlm-edge", "torch", "onnx", "onnxruntime", "ai-edge-litert", "litert-torch", "ai-edge-quantizer", "numpy")
PARTS = {  # of the network, by nodes' names
    "encoders, attention": r"^(plain|denoising)/.*/attn/",
    "encoders, MLP": r"^(plain|denoising)/.*/mlp/",
    "encoders, stage 0": r"^(plain|denoising)/(patch_embed|layers/0)/",
    "encoders, rest": r"^(plain|denoising)/",
    "decoder": r"^mask_decoder/",
    "feature aggregation": r"^fa/",
}
REST = "normalisation, map, score, norms that onnxruntime fuses"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, metavar="S", help="default: 224 448")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="turns, after 5 untimed (default: 40)")
    parser.add_argument("--out", type=Path, metavar="F", help="JSON file to write the results to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with exit_with_one_line():
        before = system.moment()
        sides = " ".join(map(str, options.sides))
        results = [measure(side, max(1, options.rounds)) for side in options.sides]
        result = {
            "command": f"python benchmarks/graph.py --sides {sides} --rounds {max(1, options.rounds)} --out F",
            "date": datetime.date.today().isoformat(),
            "machine": asdict(system.describe(PACKAGES, before)),
            "weights": "random, seed 0",
            "threads": 1,
            "batch": 1,
            "warm_up_rounds": 5,
            "rounds": max(1, options.rounds),
            "results": results,
        }
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(options.out) as temporary:
                temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    missed = [goal["says"] for one in results for goal in one["goals"] if not goal["met"]]
    for says in missed:
        print(f"missed: {says}", file=sys.stderr)
    sys.exit(1 if missed else 0)


def measure(side: int, rounds: int) -> dict[str, Any]:
    """Return all results of one side as JSON values, and print their table."""
    model = random_network(side)
    operations = flops(model)
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name:
        files = written(model, Path(name))
        megabytes = {label: path.stat().st_size / 1e6 for label, path in files.items()}
        runtimes = {label: LiteRT(path, threads=1) for label, path in files.items() if path.suffix == ".tflite"}
        runtimes |= {label: OnnxRuntime(path, threads=1) for label, path in files.items() if path.suffix == ".onnx"}
        where = {label: where_time_goes(files[label], image) for label in (PLAIN, SHAPED, INT8)}
    batch = torch.from_numpy(image)[None]

    def eager() -> None:
        with torch.inference_mode():
            model(batch)

    jobs: dict[str, Callable[[], Any]] = {GEMM: matrix_product(GEMM_SIDE), EAGER: eager}
    for label in files:
        jobs[label] = lambda runtime=runtimes[label]: runtime.run(image)
    seconds: dict[str, list[float]] = {label: [] for label in jobs}
    for turn in range(-5, rounds):
        for label, job in jobs.items():
            start = perf_counter()
            job()
            if turn >= 0:
                seconds[label].append(perf_counter() - start)

    best_rate = 2 * GEMM_SIDE**3 / min(seconds[GEMM])
    rows = []
    for label, times in seconds.items():
        rate = (2 * GEMM_SIDE**3 if label == GEMM else operations) / min(times)
        rows.append(
            {
                "name": label,
                "best_ms": 1e3 * min(times),
                "median_ms": 1e3 * float(np.median(times)),
                "of_plain": float(np.median(np.array(times) / np.array(seconds[PLAIN]))),
                "gflops_per_second": rate / 1e9,
                "share_of_best_gemm": rate / best_rate,
                "size_mb": megabytes.get(label),
            }
        )
    result = {
        "size": side,
        "flops": operations,
        "rows": rows,
        "goals": goals(side, seconds, rows),
        "ms_by_part": {label: parts for label, (parts, _) in where.items()},
        "ms_by_operator": {label: operators for label, (_, operators) in where.items()},
    }
    show(result)
    return result


def goals(side: int, seconds: dict[str, list[float]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for (label, than), goal in TIMES.items():
        ratio = float(np.median(np.array(seconds[label]) / np.array(seconds[than])))
        says = f"S={side}: {label} takes {ratio:.2f} of the time of {than}, the goal is {goal}"
        found.append({"says": says, "met": ratio <= goal})
    (share,) = (row["share_of_best_gemm"] for row in rows if row["name"] == SHAPED)
    says = f"S={side}: {SHAPED} runs at {share:.0%} of the best matrix product's rate, the goal is {SHARE:.0%}"
    found.append({"says": says, "met": share >= SHARE})
    for row in rows:
        if side == 224 and row["name"] in MEGABYTES:
            says = f"S={side}: {row['name']} has {row['size_mb']:.1f} MB, the goal is {MEGABYTES[row['name']]} MB"
            found.append({"says": says, "met": row["size_mb"] <= MEGABYTES[row["name"]]})
    return found


def written(model: STLM, folder: Path) -> dict[str, Path]:
    """The files that are compared, by their labels."""
    threshold, side = calibrate([0.5], [0.5]), model.config.size
    files = {label: folder / f"{index}.onnx" for index, label in enumerate((PLAIN, SHAPED, INT8))}
    save(exported(fold_batch_norms(model), side), files[PLAIN], threshold)
    to_onnx(model, files[SHAPED], threshold)
    onnx_int8.to_int8(files[SHAPED], files[INT8], threshold)
    paths = {label: folder / f"{index}.tflite" for index, label in enumerate((TFLITE, TFLITE_FP16, TFLITE_INT8))}
    tflite.to_tflite(model, paths[TFLITE], threshold, {})
    tflite.to_fp16(paths[TFLITE], paths[TFLITE_FP16])
    tflite.to_int8(paths[TFLITE], paths[TFLITE_INT8])
    return files | paths


def matrix_product(side: int) -> Callable[[], Any]:
    """Return a function that runs onnxruntime's float32 MatMul of side×side by a constant side×side, on one thread."""
    weights = np.random.default_rng(0).random((side, side), np.float32)
    a, c = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [side, side]) for name in "ac")
    node = onnx.helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = onnx.helper.make_graph([node], "gemm", [a], [c], [onnx.numpy_helper.from_array(weights, "b")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": weights})


def random_network(side: int) -> STLM:
    """Random weights, none of them zero: of zero biases a simpler graph would come."""
    torch.manual_seed(0)
    model = STLM(ModelConfig(side)).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith(("bias", "biases", "running_mean")):
            torch.nn.init.normal_(tensor, std=0.02)
    return model


def show(result: dict[str, Any]) -> None:
    print(f"\nS={result['size']}, {result['flops'] / 1e9:.2f} GFLOPs")
    print(f"{'':18} {'best':>9} {'median':>9} {'of plain':>9} {'of best GEMM':>13} {'size':>9}")
    for row in result["rows"]:
        size = "" if row["size_mb"] is None else f"{row['size_mb']:6.1f} MB"
        print(
            f"{row['name']:18} {row['best_ms']:6.1f} ms {row['median_ms']:6.1f} ms {row['of_plain']:9.2f} "
            f"{row['share_of_best_gemm']:13.0%} {size:>9}"
        )
    for goal in result["goals"]:
        print(f"{'met' if goal['met'] else 'missed':6} {goal['says']}")
    for kind in ("part", "operator"):
        for label, spent in result[f"ms_by_{kind}"].items():
            parts = ", ".join(f"{name} {ms:.2f}" for name, ms in list(spent.items())[:12])
            print(f"{label} by {kind}, of {sum(spent.values()):.1f} ms with every node at its best: {parts}")


def where_time_goes(artifact: Path, image: np.ndarray, runs: int = 10) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of onnxruntime by part and by operator, every node at its best, the longest first."""
    parts, operators = parts_of(onnx.load(artifact).graph), Counter[str]()
    by_part: Counter[str] = Counter()
    for event in nodes_of(OnnxRuntime(artifact, threads=1), image, runs):
        operator, ms = event["args"]["op_name"], event["dur"] / 1e3
        name = re.sub(r"^fused |_kernel_time$", "", event["name"])
        original = re.sub(r"_nchwc$|/\w+Fusion/?$", "", name)
        inserted = part_of(event) == LAYOUT or (operator == "Transpose" and original not in parts)
        operators[operator] += ms
        by_part[LAYOUT if inserted else parts.get(original, REST)] += ms
    return dict(by_part.most_common()), dict(operators.most_common())


def parts_of(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the part of the network that each node belongs to: by its name, or else that of the node that feeds it."""
    parts: dict[str, str] = {}
    made: dict[str, str] = {}
    for node in graph.node:
        named = next((part for part, pattern in PARTS.items() if re.search(pattern, node.name)), None)
        numbered = re.fullmatch(r"\w+_\d+", node.name) and node.op_type in ("Gemm", "Reshape")
        parts[node.name] = named or (made.get(node.input[0]) if numbered else None) or REST
        made.update(dict.fromkeys(node.output, parts[node.name]))
    return parts


if __name__ == "__main__":
    main()
