"""Profile of an ONNX artifact by part of the network, with the machine's peak rates for a roofline.

The names of the graph's nodes carry the modules that they come from, and onnxruntime's profiler reports the time and
shapes of each. A separate process measures it, so that no latency is disturbed, and prints one line of JSON.
"""

import argparse
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from stlm_edge import strict_json
from stlm_edge.bench.result import Part, Profile
from stlm_edge.bundle import open_bundle
from stlm_edge.errors import UsageError, exit_with_one_line
from stlm_edge.runtimes.onnxruntime import OnnxRuntime

RUNS = 10
TIME_LIMIT_S = 300.0
GEMM_SIDE = 512  # short enough to run undisturbed now and then on a busy machine
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")  # of numpy
_COPIED_BYTES = 64_000_000  # more than a processor's caches hold
PARTS = {  # of the network, by nodes' names
    "encoders, stage 0": r"^(plain|denoising)/(patch_embed|layers/0)/",
    "encoders, stage 1": r"^(plain|denoising)/layers/1/",
    "encoders, stage 2": r"^(plain|denoising)/layers/2/",
    "encoders, stage 3": r"^(plain|denoising)/layers/3/",
    "encoders, neck": r"^(plain|denoising)/",
    "decoder": r"^mask_decoder/",
    "feature aggregation": r"^fa/",
}
REST = "normalisation, map, score"
LAYOUT = "changes of layout that onnxruntime puts in"


def profile_of(bundle: Path, threads: int) -> Profile | None:
    """Return the profile of a bundle for onnxruntime, from a new process; None if that fails."""
    command = [sys.executable, "-m", "stlm_edge.bench.profile", "--bundle", str(bundle), "--threads", str(threads)]
    environment = os.environ | dict.fromkeys(_THREADS, str(threads))
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIME_LIMIT_S, env=environment)
        return strict_json.read(Profile, strict_json.parse(done.stdout, "the profile"), "the profile")
    except (subprocess.TimeoutExpired, UsageError):
        return None


def nodes_of(runtime: OnnxRuntime, image: np.ndarray, runs: int = RUNS) -> list[dict[str, Any]]:
    """Return each node's event of onnxruntime's profiler, from its fastest run."""
    best: dict[str, dict[str, Any]] = {}
    for event in runtime.profile(image, runs):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["args"]["node_index"]
            if node not in best or event["dur"] < best[node]["dur"]:
                best[node] = event
    return list(best.values())


def part_of(event: dict[str, Any], parts: dict[str, str] = PARTS) -> str:
    """Return the part of the network that a node belongs to, by its name."""
    if event["args"]["op_name"].startswith("Reorder"):
        return LAYOUT
    name = event["name"].removeprefix("fused ")
    return next((part for part, pattern in parts.items() if re.search(pattern, name)), REST)


def flop_of(event: dict[str, Any]) -> float:
    """Return the operations of a matrix product or convolution, a multiply-add as two; 0 for all other nodes."""
    operator = event["args"]["op_name"]
    shapes = [shape for each in event["args"]["input_type_shape"] for shape in each.values()]
    (out,) = event["args"]["output_type_shape"][0].values()
    if "Conv" in operator:
        return 2.0 * math.prod(out) * math.prod(shapes[1][1:])
    if "Gemm" in operator or "MatMul" in operator:
        return 2.0 * math.prod(out) * shapes[0][-1]
    return 0.0


def _bytes_of(event: dict[str, Any]) -> float:
    """Return the bytes read and written. Weights that onnxruntime has packed are not among the reported inputs."""
    values = event["args"]
    moved = sum(float(values[name]) for name in ("activation_size", "parameter_size", "output_size"))
    (first,), (out,) = values["input_type_shape"][0].values(), values["output_type_shape"][0].values()
    product = "Gemm" in values["op_name"] or "MatMul" in values["op_name"]
    if product and not any(len(shape) >= 2 for each in values["input_type_shape"][1:] for shape in each.values()):
        moved += first[-1] * out[-1] * (1 if "Integer" in values["op_name"] or "Quant" in values["op_name"] else 4)
    return moved


def _profile(runtime: OnnxRuntime, image: np.ndarray) -> Profile:
    totals: dict[str, np.ndarray] = {}
    for event in nodes_of(runtime, image):
        values = np.array([event["dur"] / 1e3, flop_of(event) / 1e9, _bytes_of(event) / 1e6])
        totals[part_of(event)] = totals.get(part_of(event), 0) + values
    parts = [Part(name, *totals[name].round(4).tolist()) for name in (*PARTS, REST, LAYOUT) if name in totals]
    a, b = np.random.default_rng(0).random((2, GEMM_SIDE, GEMM_SIDE), np.float32)
    product_s = _fastest(lambda: np.matmul(a, b), 100)
    source = np.ones(_COPIED_BYTES, np.uint8)
    target = np.empty_like(source)
    copy_s = _fastest(lambda: np.copyto(target, source), 20)
    return Profile(tuple(parts), round(2 * GEMM_SIDE**3 / product_s / 1e9, 1), round(2 * len(source) / copy_s / 1e9, 1))


def _fastest(job: Callable[[], Any], runs: int) -> float:
    """Return the seconds of the fastest run."""
    seconds = []
    for _ in range(runs):
        started = perf_counter()
        job()
        seconds.append(perf_counter() - started)
    return min(seconds)


def main() -> None:
    """Print the profile of one bundle."""
    parser = argparse.ArgumentParser("python -m stlm_edge.bench.profile", description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with exit_with_one_line():
        bundle = open_bundle(options.bundle, threads=options.threads)
        if not isinstance(bundle.runtime, OnnxRuntime):
            raise UsageError(f"{options.bundle}: for {bundle.manifest.runtime}, expected one for onnxruntime")
        print(strict_json.dump(_profile(bundle.runtime, next(bundle.golden()).tensor)), end="")


if __name__ == "__main__":
    main()
