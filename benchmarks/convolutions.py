"""Study int8 convolutions: the effect of each method on a trained model's map, and on time.

    python benchmarks/convolutions.py --run RUN --out benchmarks/results/convolutions.json

Simulated in torch: linear layers as `converters/onnx_int8.py` has them (inputs uint8 with each image's range,
weights int8 with a scale per output channel), beside them convolutions with uint8 inputs and int8 weights, in several
ways: ranges from the quantization set (the largest values, or a quantile), each image's own range, only some
convolutions, channels equalised (input channels divided by √(their largest value / largest weight), weights multiplied;
exact where a norm or ReLU comes before, elsewhere it would cost a multiplication), chosen one by one, least sensitive
first, and fine-tuned with the roundings in the forward pass against the float model's maps and features on the
quantization set.

Judged on the run's held-out normal images and pseudo-anomalies made on them, by the export's gate. The fine-tuning
sees the quantization set, which is made of the same normal images with other defects: what it shows is, if
anything, too good.

Time: onnxruntime on one thread, its static quantization of linear layers and convolutions beside the shipped int8 file,
in turns.
"""

import argparse
import copy
import datetime
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from stlm_edge.bench.machine import system
from stlm_edge.bundle.golden import GoldenCandidate
from stlm_edge.bundle.parity import compare
from stlm_edge.converters import onnx_int8, quiet
from stlm_edge.converters.export_form import fold_batch_norms
from stlm_edge.converters.float32_operators import evenly
from stlm_edge.converters.onnx import to_onnx
from stlm_edge.errors import exit_with_one_line
from stlm_edge.export.gate import METRICS, accuracy_on_pseudo_anomalies, lost_accuracy, pseudo_anomalies_on
from stlm_edge.export.quantization_set import quantization_set
from stlm_edge.files import replacing
from stlm_edge.images import list_images
from stlm_edge.model import STLM, checkpoint
from stlm_edge.runtimes.onnxruntime import OnnxRuntime

RANGED = 24  # quantization images that ranges are from
RANKED = 4  # and those by which convolutions are ranked
QUANTILE = 0.9999
BATCH, RATE = 4, 3e-5
CHOSEN = (0.25, 0.5, 0.75)  # of the convolutions, the least sensitive first
PARTS = {  # by names of convolutions
    "encoders": r"plain.|denoising.",
    "feature aggregation": "fa.",
}


class _Int8Linear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        x = _in_uint8(x, x.detach().min(), x.detach().max())
        return F.linear(x, _in_int8(self.weight), self.bias)


class _Int8Conv(nn.Module):
    """A convolution; `low` and `high`, scalars, are its input's range, each image's own where they are None."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.on = True
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.share = torch.ones(1)  # by which input channels are divided

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not self.on:
            return layer(x)
        x = x / self.share.reshape(-1, 1, 1)
        low, high = (x.detach().min(), x.detach().max()) if self.low is None else (self.low, self.high)
        depthwise = layer.groups > 1
        weight = layer.weight * (self.share.reshape(-1, 1, 1, 1) if depthwise else self.share.reshape(1, -1, 1, 1))
        x = _in_uint8(x, low, high)
        return F.conv2d(x, _in_int8(weight), layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _in_uint8(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


def _in_int8(weight: Tensor) -> Tensor:
    scale = (weight.detach().flatten(1).abs().amax(dim=1) / 127).clamp_min(1e-12)
    return torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -127, 127
    )


class Simulated:
    """The network with int8 layers, as a runtime for the gate."""

    name = "int8 simulated"

    def __init__(self, model: STLM) -> None:
        self.model, self.size = fold_batch_norms(model), model.config.size
        self.convolutions: dict[str, _Int8Conv] = {}
        for name, module in list(self.model.named_modules()):
            parent = self.model.get_submodule(name.rpartition(".")[0])
            if isinstance(module, nn.Linear):
                setattr(parent, name.rpartition(".")[2], _Int8Linear(module))
            if isinstance(module, nn.Conv2d):
                self.convolutions[name] = _Int8Conv(module)
                setattr(parent, name.rpartition(".")[2], self.convolutions[name])
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        with torch.no_grad():
            answer = self.model(torch.from_numpy(image)[None])
        return answer.anomaly_map[0, 0].numpy(), answer.score.item()

    def turn_on(self, names: Iterable[str]) -> "Simulated":
        chosen = set(names)
        for name, layer in self.convolutions.items():
            layer.on = name in chosen
        return self

    def take_ranges(self, images: Sequence[np.ndarray], quantile: float = 1.0, equalise: bool = False) -> "Simulated":
        """Ranges of the float network on these images; nothing else may have been set before."""
        seen: dict[str, list[Tensor]] = {name: [] for name in self.convolutions}

        def watch(name: str) -> Callable[..., None]:
            return lambda _, inputs: seen[name].append(_of_channels(inputs[0], quantile))

        hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in self.convolutions.items()]
        self.turn_on(())
        for image in images:
            self.run(image)
        for hook in hooks:
            hook.remove()
        for name, layer in self.convolutions.items():
            stacked = torch.stack(seen[name])
            low, high = stacked[..., 0].amin(0), stacked[..., 1].amax(0)
            if equalise:
                weight = layer.layer.weight
                by_input = weight.flatten(1).abs().amax(1) if layer.layer.groups > 1 else weight.abs().amax((0, 2, 3))
                largest = torch.maximum(-low, high).clamp_min(1e-6)
                # Of a depthwise convolution each channel has a weight scale of its own: all of it can go there.
                layer.share = largest if layer.layer.groups > 1 else (largest / by_input.clamp_min(1e-6)).sqrt()
                low, high = low / layer.share, high / layer.share
            layer.low, layer.high = low.min(), high.max()
        return self.turn_on(self.convolutions)


def _of_channels(x: Tensor, quantile: float) -> Tensor:
    """Lowest and highest value of each channel, C×2."""
    rows = x.transpose(0, 1).flatten(1)
    if quantile == 1:
        return torch.stack([rows.amin(1), rows.amax(1)], dim=1)
    return torch.stack([rows.quantile(1 - quantile, dim=1), rows.quantile(quantile, dim=1)], dim=1)


def fine_tuned(float_model: STLM, simulated: Simulated, images: Sequence[np.ndarray], steps: int) -> Simulated:
    """Fine-tune all weights of `simulated` through the roundings, against the float model's maps and features."""
    teacher, student = fold_batch_norms(float_model), simulated.model
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(student.parameters(), lr=RATE)
    rng = np.random.default_rng(0)
    for number in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * min(1, (number + 1) / 10) * (1 - number / steps)
        chosen = np.stack([images[index] for index in rng.permutation(len(images))[:BATCH]])
        x = student.normalise(torch.from_numpy(chosen))
        with torch.no_grad():
            expected = teacher.streams(x)
            logits = teacher.fa(*expected)
        found = student.streams(x)
        loss = F.mse_loss(student.fa(*found), logits)
        for stream, other in zip(found, expected, strict=True):
            for maps, like in zip(stream, other, strict=True):
                loss = loss + (1 - F.cosine_similarity(maps, like, dim=1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if number % 20 == 0:
            print(f"fine-tuning: step {number}, loss {loss.item():.5f}", flush=True)
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    return simulated


class Judge:
    """The gate's result for a simulated network, on the run's held-out images and pseudo-anomalies on them."""

    def __init__(self, run: Path) -> None:
        opened = checkpoint.load(run / "checkpoint.safetensors")
        self.model, self.decision_threshold = opened.model.eval(), opened.decision_threshold
        size = opened.model.config.size
        self.images = pseudo_anomalies_on(list_images(run / "held_out"), size)
        reference = Simulated(self.model).turn_on(())
        reference.model = fold_batch_norms(self.model)
        self.metrics = accuracy_on_pseudo_anomalies(reference, self.images)
        self.golden = [
            GoldenCandidate(str(number), None, bool(mask.any()), image, *reference.run(image))  # type: ignore[arg-type]
            for number, (image, mask) in enumerate(self.images)
        ]

    def __call__(self, way: str, simulated: Simulated) -> dict[str, Any]:
        answers = [simulated.run(image) for image, _ in self.images]
        parity, rows = compare(self.golden, answers, self.decision_threshold.value, self.decision_threshold.delta)
        metrics = accuracy_on_pseudo_anomalies(_Known(answers, self.images, simulated.size), self.images)
        losses = lost_accuracy({"trained": self.metrics, "packed": metrics}, "int8", len(rows) ** 2 // 4)
        row = {
            "way": way,
            "int8_convolutions": sum(layer.on for layer in simulated.convolutions.values()),
            "cosine": parity.cosine,
            "worst_cosine": min(one.cosine for one in rows),
            "verdict_failures": parity.verdict_failures,
            **{name: metrics[name] for name in METRICS},
            "holds": not (losses or parity.verdict_failures),
        }
        print(json.dumps(row), flush=True)
        return row


class _Known:
    """Outputs already computed, as a runtime."""

    name = "int8 simulated"

    def __init__(self, answers: list[tuple[np.ndarray, float]], images: list[tuple[np.ndarray, np.ndarray]], size: int):
        self.of = {id(image): answer for (image, _), answer in zip(images, answers, strict=True)}
        self.size = size

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        return self.of[id(image)]


def by_sensitivity(model: STLM, ranged: Simulated, images: Sequence[np.ndarray]) -> list[str]:
    """Names of the convolutions, the least sensitive alone first."""
    expected = [ranged.turn_on(()).run(image)[0] for image in images]
    sensitivity = {}
    for name in ranged.convolutions:
        ranged.turn_on([name])
        maps = [ranged.run(image)[0] for image in images]
        sensitivity[name] = np.mean([np.abs(a - b).mean() for a, b in zip(maps, expected, strict=True)])
    return sorted(sensitivity, key=lambda name: sensitivity[name])


def times(run: Path, rounds: int) -> dict[str, Any]:
    """Medians of ratios to float of onnxruntime's int8 files, one thread."""
    opened = checkpoint.load(run / "checkpoint.safetensors")
    images = quantization_set(run / "held_out", opened.model.config.size)[0][:2]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"image": image[None]}

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {label: folder / f"{label}.onnx" for label in ("float", "shipped", "convolutions")}
        to_onnx(opened.model, paths["float"], opened.decision_threshold)
        onnx_int8.to_int8(paths["float"], paths["shipped"], opened.decision_threshold)
        with quiet():
            quantize_static(
                paths["float"],
                paths["convolutions"],
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Gemm", "MatMul", "Conv"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        runtimes = {label: OnnxRuntime(path, threads=1) for label, path in paths.items()}
        seconds: dict[str, list[float]] = {label: [] for label in runtimes}
        for turn in range(-2, rounds):
            for label, runtime in runtimes.items():
                start = perf_counter()
                runtime.run(images[0])
                if turn >= 0:
                    seconds[label].append(perf_counter() - start)
    of_float = {
        label: float(np.median(np.array(spent) / np.array(seconds["float"]))) for label, spent in seconds.items()
    }
    return {"rounds": rounds, "of_float": of_float, "best_ms": {label: 1e3 * min(s) for label, s in seconds.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished training")
    parser.add_argument("--steps", type=int, default=200, help="of fine-tuning, 0: leave it out (default: 200)")
    parser.add_argument("--rounds", type=int, default=20, help="turns of the timing (default: 20)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write the results to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with exit_with_one_line():
        before = system.moment()
        judge = Judge(options.run)
        model = judge.model
        seen = quantization_set(options.run / "held_out", model.config.size)[0]
        ranged = evenly(seen, RANGED)
        rows = [judge("none: linear layers only", Simulated(model).turn_on(()))]

        static = Simulated(model).take_ranges(ranged)
        rows.append(judge("all, ranges of the quantization set", static))
        for part, begins in PARTS.items():
            names = [name for name in static.convolutions if name.startswith(tuple(begins.split("|")))]
            rows.append(judge(f"those of the {part} alone", static.turn_on(names)))
        dense = [name for name, layer in static.convolutions.items() if layer.layer.groups == 1]
        rows.append(judge("all but depthwise ones", static.turn_on(dense)))
        rows.append(judge(f"all, ranges at the quantile {QUANTILE:g}", Simulated(model).take_ranges(ranged, QUANTILE)))
        rows.append(judge("all, range of each image", Simulated(model)))

        equal = Simulated(model).take_ranges(ranged, equalise=True)
        rows.append(judge("all, channels equalised", equal))
        order = by_sensitivity(model, equal, evenly(seen, RANKED))
        for share in CHOSEN:
            chosen = order[: round(share * len(order))]
            rows.append(judge(f"the least sensitive {share:.0%}, equalised", equal.turn_on(chosen)))
        if options.steps:
            tuned = fine_tuned(model, copy.deepcopy(equal).turn_on(order), seen, options.steps)
            rows.append(judge(f"all, equalised, fine-tuned for {options.steps} steps of {BATCH}", tuned))
        result = {
            "command": f"python benchmarks/convolutions.py --run RUN --steps {options.steps} --rounds {options.rounds}",
            "date": datetime.date.today().isoformat(),
            "machine": asdict(system.describe(("stlm-edge", "torch", "onnxruntime"), before)),
            "data": Path(json.loads((options.run / "config.json").read_text())["data"]).name,
            "images": len(judge.images),
            "trained": judge.metrics,
            "rows": rows,
            "times": times(options.run, options.rounds),
        }
        with replacing(options.out) as temporary:
            temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(json.dumps(result["times"]))


if __name__ == "__main__":
    main()
