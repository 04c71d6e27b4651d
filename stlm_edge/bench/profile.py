"""Where an ONNX artifact's time goes, by part of the network, and what this machine could do at best: a roofline.

The nodes' names carry the modules they come from, and onnxruntime's profile tells each one's time and shapes. A process
of its own does it, so that no latency is disturbed; it answers with one line of JSON.
"""

import argparse
import math
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
from stlm_edge.formats.protobuf import encode_field, encode_number
from stlm_edge.runtimes.onnxruntime import PROVIDER, OnnxRuntime

RUNS = 10
TIME_LIMIT_S = 300.0
GEMM_SIDE = 512  # small enough to be undisturbed once in a while on a busy machine
_COPIED = 64_000_000  # bytes, more than a processor's caches hold
PARTS = {  # of the network, by nodes' names
    "encoders, stage 0": r"^(plain|denoising)/(patch_embed|stage0)/",
    "encoders, stage 1": r"^(plain|denoising)/stage1/",
    "encoders, stage 2": r"^(plain|denoising)/stage2/",
    "encoders, stage 3": r"^(plain|denoising)/stage3/",
    "encoders, neck": r"^(plain|denoising)/",
    "decoder": r"^mask_decoder/",
    "feature aggregation": r"^fa/",
}
REST = "normalisation, map, score"
LAYOUT = "changes of layout that onnxruntime puts in"


def profile_of(bundle: Path, threads: int) -> Profile | None:
    """The profile of a bundle for onnxruntime, from a new process; None where that fails."""
    command = [sys.executable, "-m", "stlm_edge.bench.profile", "--bundle", str(bundle), "--threads", str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIME_LIMIT_S)
        return strict_json.read(Profile, strict_json.parse(done.stdout, "the profile"), "the profile")
    except (subprocess.TimeoutExpired, UsageError):
        return None


def nodes_of(runtime: OnnxRuntime, image: np.ndarray, runs: int = RUNS) -> list[dict[str, Any]]:
    """Each node's event in onnxruntime's profile, that of its fastest of some runs."""
    best: dict[str, dict[str, Any]] = {}
    for event in runtime.profile(image, runs):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["args"]["node_index"]
            if node not in best or event["dur"] < best[node]["dur"]:
                best[node] = event
    return list(best.values())


def part_of(event: dict[str, Any], parts: dict[str, str] = PARTS) -> str:
    """The part of the network that a node belongs to, by its name."""
    if event["args"]["op_name"].startswith("Reorder"):
        return LAYOUT
    name = event["name"].removeprefix("fused ")
    return next((part for part, pattern in parts.items() if re.search(pattern, name)), REST)


def flop_of(event: dict[str, Any]) -> float:
    """Floating-point operations of a matrix product or convolution, a multiply-add as two; 0 for all else."""
    operator = event["args"]["op_name"]
    shapes = [shape for each in event["args"]["input_type_shape"] for shape in each.values()]
    (out,) = event["args"]["output_type_shape"][0].values()
    if "Conv" in operator:
        return 2.0 * math.prod(out) * math.prod(shapes[1][1:])
    if "Gemm" in operator or "MatMul" in operator:
        return 2.0 * math.prod(out) * shapes[0][-1]
    return 0.0


def _bytes_of(event: dict[str, Any]) -> float:
    """Read and written. Weights that onnxruntime has packed are not among the inputs it tells."""
    told = event["args"]
    moved = sum(float(told[name]) for name in ("activation_size", "parameter_size", "output_size"))
    (first,), (out,) = told["input_type_shape"][0].values(), told["output_type_shape"][0].values()
    packed = "Gemm" in told["op_name"] or "MatMul" in told["op_name"]
    if packed and not any(len(shape) >= 2 for each in told["input_type_shape"][1:] for shape in each.values()):
        moved += first[-1] * out[-1] * (1 if "Integer" in told["op_name"] or "Quant" in told["op_name"] else 4)
    return moved


def _profile(runtime: OnnxRuntime, image: np.ndarray) -> Profile:
    found: dict[str, list[float]] = {}
    for event in nodes_of(runtime, image):
        figures = event["dur"] / 1e3, flop_of(event) / 1e9, _bytes_of(event) / 1e6
        part = found.setdefault(part_of(event), [0.0, 0.0, 0.0])
        part[:] = [total + figure for total, figure in zip(part, figures, strict=True)]
    parts = [
        Part(name, *(round(figure, 4) for figure in found[name])) for name in (*PARTS, REST, LAYOUT) if name in found
    ]
    much = np.ones(_COPIED, np.uint8)
    target = np.empty_like(much)
    gemm = _best(matrix_product(GEMM_SIDE, runtime.threads or 1), 100)
    copied = _best(lambda: np.copyto(target, much), 20)
    return Profile(tuple(parts), round(2 * GEMM_SIDE**3 / gemm / 1e9, 1), round(2 * _COPIED / copied / 1e9, 1))


def matrix_product(side: int, threads: int) -> Callable[[], Any]:
    """onnxruntime's MatMul of side×side by a constant side×side, float32."""
    import onnxruntime

    weights = np.random.default_rng(0).random((side, side), np.float32)
    size = encode_number(1, side)
    of_floats = encode_number(1, 1) + encode_field(2, 2 * encode_field(1, size))  # element type and shape
    value = {name: encode_field(1, name) + encode_field(2, encode_field(1, of_floats)) for name in (b"a", b"c")}
    node = encode_field(1, b"a") + encode_field(1, b"b") + encode_field(2, b"c") + encode_field(4, b"MatMul")
    constant = 2 * size + encode_number(2, 1) + encode_field(8, b"b") + encode_field(9, weights.tobytes())
    graph = encode_field(1, node) + encode_field(2, b"gemm") + encode_field(5, constant)
    graph += encode_field(11, value[b"a"]) + encode_field(12, value[b"c"])
    model = encode_number(1, 8) + encode_field(7, graph) + encode_field(8, encode_number(2, 17))  # IR 8, opset 17
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = onnxruntime.InferenceSession(model, options, providers=[PROVIDER])
    return lambda: session.run(None, {"a": weights})


def _best(job: Callable[[], Any], runs: int) -> float:
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(runs):
        started = perf_counter()
        job()
        seconds.append(perf_counter() - started)
    return min(seconds)


def main() -> None:
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
