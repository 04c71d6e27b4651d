"""Time the network on one thread, one picture at a time: torch eager, onnxruntime fp32 and int8, side by side.

    python benchmarks/cpu.py --checkpoint runs/demo/checkpoint.safetensors --out benchmarks/results/cpu.json

All are timed in turns (A B C A B C …) in one process, so that a busy or throttled machine slows them alike; a ratio is
the median of the ratios within each turn. The yardstick is the machine's best float32 matrix product, onnxruntime's own
MatMul of 1024×1024×1024, timed in the same turns; a share of it counts best time against best time, a multiply-add as
two operations. Without a checkpoint the weights are random (seed 0): speed doesn't depend on them, parity isn't shown.

Exits 1 when a goal is missed. What onnxruntime spends on which operator is printed with the table: three times eager's
speed is more than there is wherever eager already runs at a third of the best matrix product.
"""

import argparse
import datetime
import json
import os
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
from onnx import TensorProto, helper, numpy_helper

from stlm_edge import checkpoint
from stlm_edge.bench import machine
from stlm_edge.calibrate import calibrate
from stlm_edge.converters.onnx import to_onnx
from stlm_edge.converters.quantization import to_int8
from stlm_edge.errors import exit_with_one_line
from stlm_edge.export import flops
from stlm_edge.files import replacing
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.runtimes.onnxruntime import OnnxRuntime

GEMM_SIDE = 1024
EAGER, FP32, INT8, GEMM = "torch eager", "onnxruntime fp32", "onnxruntime int8", f"MatMul {GEMM_SIDE}³"
GOALS = {(FP32, EAGER): 3.0, (INT8, FP32): 1.25}
PACKAGES = ("stlm-edge", "torch", "onnx", "onnxruntime", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="F", help="trained model (default: random weights at 224)")
    parser.add_argument(
        "--rounds", type=int, default=40, metavar="N", help="turns to time, after 5 untimed (default: 40)"
    )
    parser.add_argument("--out", type=Path, metavar="F", help="JSON file to write the figures to")
    options = parser.parse_args()
    with exit_with_one_line():
        result = measure(options.checkpoint, max(1, options.rounds))
        show(result)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(options.out) as temporary:
                temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    missed = [goal for goal in result["goals"] if not goal["met"]]
    for goal in missed:
        print(
            f"missed: {goal['faster']} is {goal['ratio']:.2f}× {goal['than']}, the goal is {goal['goal']}×",
            file=sys.stderr,
        )
    sys.exit(1 if missed else 0)


def measure(path: Path | None, rounds: int) -> dict[str, Any]:
    """All figures, as JSON values."""
    torch.set_num_threads(1)
    before = machine.moment()
    if path is not None:
        opened = checkpoint.load(path)
        model, calibration = opened.model, opened.calibration
    else:
        model, calibration = random_network(), None
    size, operations = model.config.size, flops(model)
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)

    with tempfile.TemporaryDirectory() as name:
        fp32, int8 = Path(name) / "fp32.onnx", Path(name) / "int8.onnx"
        to_onnx(model, fp32, calibration or calibrate([0.5], [0.5]))
        to_int8(model, fp32, int8, calibration or calibrate([0.5], [0.5]))
        megabytes = {FP32: fp32.stat().st_size / 1e6, INT8: int8.stat().st_size / 1e6}
        runtimes = {FP32: OnnxRuntime(fp32, threads=1), INT8: OnnxRuntime(int8, threads=1)}
        operators = {FP32: by_operator(fp32, image), INT8: by_operator(int8, image)}
    batch = torch.from_numpy(image)[None]

    def eager() -> None:
        with torch.inference_mode():
            model(batch)

    jobs: dict[str, Callable[[], Any]] = {GEMM: matrix_product(), EAGER: eager}
    for label, runtime in runtimes.items():
        jobs[label] = lambda runtime=runtime: runtime.run(image)
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
                "gflops_per_second": rate / 1e9,
                "share_of_best_gemm": rate / best_rate,
                "size_mb": megabytes.get(label),
            }
        )
    goals = []
    for (faster, than), goal in GOALS.items():
        ratio = float(np.median(np.array(seconds[than]) / np.array(seconds[faster])))
        goals.append({"faster": faster, "than": than, "ratio": ratio, "goal": goal, "met": ratio >= goal})
    return {
        "command": "python benchmarks/cpu.py" + ("" if path is None else " --checkpoint F"),
        "date": datetime.date.today().isoformat(),
        "machine": asdict(machine.describe(PACKAGES, before)),
        "size": size,
        "weights": "random, seed 0" if path is None else "a checkpoint's",
        "flops": operations,
        "threads": 1,
        "batch": 1,
        "warm_up_rounds": 5,
        "rounds": rounds,
        "rows": rows,
        "goals": goals,
        "operator_ms": operators,
    }


def random_network() -> STLM:
    """Random weights, none of them zero: of zero biases a simpler graph would come."""
    torch.manual_seed(0)
    model = STLM(ModelConfig(224)).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith(("bias", "biases", "running_mean")):
            torch.nn.init.normal_(tensor, std=0.02)
    return model


def show(result: dict[str, Any]) -> None:
    described = result["machine"]
    print(
        f"{described['processor']}, {described['cores']} cores, load {described['load_before']} before and "
        f"{described['load_after']} after; {result['date']}\n"
        f"S={result['size']}, batch 1, 1 thread, {result['rounds']} turns, {result['flops'] / 1e9:.2f} GFLOPs, "
        f"weights: {result['weights']}\n"
    )
    print(f"{'':18} {'best':>9} {'median':>9} {'GFLOP/s':>9} {'of best GEMM':>13} {'size':>9}")
    for row in result["rows"]:
        size = "" if row["size_mb"] is None else f"{row['size_mb']:6.1f} MB"
        print(
            f"{row['name']:18} {row['best_ms']:6.1f} ms {row['median_ms']:6.1f} ms {row['gflops_per_second']:9.0f} "
            f"{row['share_of_best_gemm']:13.0%} {size:>9}"
        )
    print()
    for goal in result["goals"]:
        print(f"{goal['faster']} is {goal['ratio']:.2f}× {goal['than']} (goal {goal['goal']}×)")
    for label, operators in result["operator_ms"].items():
        total = sum(operators.values())
        parts = ", ".join(f"{name} {ms:.1f}" for name, ms in list(operators.items())[:9])
        print(f"{label} by operator, of {total:.1f} ms with every node at its best: {parts}")


def matrix_product() -> Callable[[], Any]:
    """onnxruntime's MatMul of 1024×1024 by a constant 1024×1024."""
    weights = np.random.default_rng(0).random((GEMM_SIDE, GEMM_SIDE), dtype=np.float32)
    shape = [GEMM_SIDE, GEMM_SIDE]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "gemm",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "b")],
    )
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), one_thread(), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": weights})


def by_operator(artifact: Path, image: np.ndarray, runs: int = 10) -> dict[str, float]:
    """Milliseconds that onnxruntime spends on each kind of operator, every node at its best; the longest first."""
    options = one_thread()
    options.enable_profiling = True
    options.profile_file_prefix = str(artifact.with_suffix(".profile"))
    session = onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, {"image": image[None]})
    spent: dict[tuple[str, str], list[float]] = {}
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1e3)
    total: Counter[str] = Counter()
    for (operator, _), times in spent.items():
        total[operator] += min(times)
    return dict(total.most_common())


def one_thread() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


if __name__ == "__main__":
    main()
