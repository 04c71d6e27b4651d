"""Computes a saved Core ML program with torch, where there is no Core ML: everywhere but on macOS.

coremltools converts and saves on any machine, but predicts on macOS only. So that every package is proven where it is
made, this reads the *saved* package back, weights included, and computes its program (MIL, the model intermediate
language: apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html) operation by operation.
Weights that the package holds compressed are used as Core ML decompresses them. Every value that the program declares
as fp16 is rounded to fp16, and so are the steps inside layer norms and L2 norms, whose squares may overflow there; sums
run in float32. What the hardware does with subnormals, fp16 values below 6.1e-5, is not documented; many an epsilon and
square is one. So there are two roundings, which keep them or take them for 0, and a package has to do by both. It says
what the program means, not how fast Core ML is: a reference, never called Core ML.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stlm_edge.errors import JobError, UsageError
from stlm_edge.formats import coreml


def conv(o: Any) -> Tensor:
    if o.pad_type not in ("custom", "valid"):
        raise NotImplementedError(f"pad_type {o.pad_type}")
    top, bottom, left, right = o.pad if o.pad_type == "custom" else (0, 0, 0, 0)
    padded = F.pad(o.x, (left, right, top, bottom))
    return F.conv2d(padded, o.weight, o.bias, o.strides, 0, o.dilations, o.groups)


def batch_norm(o: Any) -> Tensor:
    shape = (1, -1, *[1] * (o.x.dim() - 2))
    deviation = (o.variance + o.epsilon).sqrt().reshape(shape)
    y = (o.x - o.mean.reshape(shape)) / deviation
    return y * (1 if o.gamma is None else o.gamma.reshape(shape)) + (0 if o.beta is None else o.beta.reshape(shape))


def gelu(o: Any) -> Tensor:
    if o.mode == "SIGMOID_APPROXIMATION":
        return o.x * torch.sigmoid(1.702 * o.x)
    return F.gelu(o.x, approximate="none" if o.mode == "EXACT" else "tanh")


def layer_norm(o: Any) -> Tensor:
    axes = list(o.axes)
    if axes != [-1] and axes != [o.x.dim() - 1]:
        raise NotImplementedError(f"axes {axes}")
    centred = o.rounded(o.x - o.rounded(o.x.mean(-1, keepdim=True)))
    variance = o.rounded(o.rounded(centred * centred).mean(-1, keepdim=True))
    y = centred / o.rounded((variance + o.epsilon).sqrt())
    return y * (1 if o.gamma is None else o.gamma) + (0 if o.beta is None else o.beta)


def matmul(o: Any) -> Tensor:
    x = o.x.transpose(-1, -2) if o.transpose_x else o.x
    return x @ (o.y.transpose(-1, -2) if o.transpose_y else o.y)


def pad(o: Any) -> Tensor:
    if o.mode != "constant":
        raise NotImplementedError(f"mode {o.mode}")
    pairs = [o.pad[i : i + 2] for i in range(0, len(o.pad), 2)]  # before and after, first axis first; torch's go back
    return F.pad(o.x, [amount for pair in reversed(pairs) for amount in pair], value=o.constant_val)


def slice_by_index(o: Any) -> Tensor:
    rank = o.x.dim()
    no = [False] * rank
    if any(o.squeeze_mask or no):
        raise NotImplementedError("squeeze_mask")
    ranges = zip(o.begin, o.end, o.stride or [1] * rank, o.begin_mask or no, o.end_mask or no, strict=True)
    return o.x[tuple(slice(None if b_open else b, None if e_open else e, s) for b, e, s, b_open, e_open in ranges)]


def split(o: Any) -> tuple[Tensor, ...]:
    if o.split_sizes is None:
        return o.x.tensor_split(o.num_splits, dim=o.axis)
    return o.x.split(list(o.split_sizes), dim=o.axis)


def concat(o: Any) -> Tensor:
    if o.interleave:
        raise NotImplementedError("interleave")
    return torch.cat(o.values, dim=o.axis)


def topk(o: Any) -> tuple[Tensor, ...]:
    found = o.x.topk(o.k, dim=o.axis, largest=not o.ascending, sorted=True)
    return (found.values,) if o.return_indices is False else (found.values, found.indices)


def upsample_bilinear(o: Any) -> Tensor:
    if o.half_pixel_centers not in (None, not o.align_corners):
        raise NotImplementedError(f"half_pixel_centers {o.half_pixel_centers} with align_corners {o.align_corners}")
    factors = [o.scale_factor_height, o.scale_factor_width]
    return F.interpolate(o.x, scale_factor=factors, mode="bilinear", align_corners=o.align_corners)


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "add": lambda o: o.x + o.y,
    "batch_norm": batch_norm,
    "cast": lambda o: o.x,  # between floats: the result is rounded to what it is declared as
    "concat": concat,
    "conv": conv,
    "expand_dims": lambda o: o.x[tuple(None if i in o.axes else slice(None) for i in range(o.x.dim() + len(o.axes)))],
    "gelu": gelu,
    "layer_norm": layer_norm,
    "linear": lambda o: F.linear(o.x, o.weight, o.bias),
    "matmul": matmul,
    "maximum": lambda o: torch.maximum(o.x, torch.as_tensor(o.y)),
    "mul": lambda o: o.x * o.y,
    "pad": pad,
    "pow": lambda o: o.x**o.y,
    "real_div": lambda o: o.x / o.y,
    "reduce_l2_norm": lambda o: o.rounded(o.x * o.x).sum(tuple(o.axes), keepdim=o.keep_dims).sqrt(),
    "reduce_mean": lambda o: o.x.mean(tuple(o.axes), keepdim=o.keep_dims),
    "relu": lambda o: o.x.relu(),
    "reshape": lambda o: o.x.reshape(tuple(o.shape)),
    "rsqrt": lambda o: (o.x + (o.epsilon or 0)).rsqrt(),
    "sigmoid": lambda o: o.x.sigmoid(),
    "slice_by_index": slice_by_index,
    "softmax": lambda o: o.x.softmax(o.axis),
    "split": split,
    "sqrt": lambda o: o.x.sqrt(),
    "squeeze": lambda o: o.x.squeeze(tuple(o.axes)),
    "sub": lambda o: o.x - o.y,
    "tile": lambda o: o.x.repeat(tuple(o.reps)),
    "topk": topk,
    "transpose": lambda o: o.x.permute(tuple(o.perm)),
    "upsample_bilinear": upsample_bilinear,
}


class Name(str):
    """An argument that an earlier operation computes."""


class Step(NamedTuple):
    """An operation of the program: its arguments, values or `Name`s, its results' names and types, what to forget."""

    kind: str
    arguments: dict[str, Any]
    results: list[tuple[str, str]]
    done_with: list[str]


class MilEvaluator:
    """A saved `.mlpackage` whose input is `image`, an RGB image of S×S, and whose outputs are `anomaly_map`, float32
    1×1×S×S, and `score`, float32 of shape 1.

    `rounded` is what happens to a value that is declared as fp16; `as_it_is` tells rounding from wrong conversion.
    Raises UsageError when coremltools is missing, the package is another one, or it holds an operation that is not in
    OPERATIONS.
    """

    def __init__(
        self, artifact: str | Path, threads: int | None = None, rounded: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.artifact = artifact
        self.rounded = rounded or to_fp16
        self.name = "mil-evaluator, subnormals as 0" if rounded is to_fp16_without_subnormals else "mil-evaluator"
        coreml.check_files(artifact)
        self.size, self.steps = read_program(Path(artifact), self.rounded)

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """uint8 RGB S×S×3 in; anomaly map float32 S×S and score out.

        Raises ValueError for another shape or type, UsageError when the program holds an operation in a mode that isn't
        known, JobError when a value anywhere in it isn't finite.
        """
        if image.shape != (self.size, self.size, 3) or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self.size}×{self.size}×3, found {image.dtype} {image.shape}")
        tensor = torch.tensor(image).permute(2, 0, 1)[None].float()
        try:
            with torch.inference_mode():
                values = compute(self.steps, {"image": tensor}, self.rounded)
        except NotImplementedError as problem:
            raise UsageError(
                f"{self.artifact}: holds the MIL operation {problem}, which the MIL evaluator does not know; export "
                "with the locked version of coremltools, or check the package on macOS"
            ) from None
        except FloatingPointError as problem:
            raise JobError(f"{self.artifact}: {problem}") from None
        return values["anomaly_map"][0, 0].numpy(), values["score"].item()


def to_fp16(x: Tensor) -> Tensor:
    """Floats rounded to the nearest fp16."""
    return x.half().float() if x.is_floating_point() else x


def to_fp16_without_subnormals(x: Tensor) -> Tensor:
    """The same, but 0 for what is smaller than fp16's smallest normal number, 2⁻¹⁴."""
    return to_fp16(x).masked_fill(x.abs() < 2**-14, 0) if x.is_floating_point() else x


def as_it_is(x: Tensor) -> Tensor:
    return x


def compute(
    steps: list[Step], values: dict[str, Tensor], rounded: Callable[[Tensor], Tensor] = to_fp16
) -> dict[str, Tensor]:
    """The program's outputs, and whatever else no step is the last to need, from its inputs.

    Raises FloatingPointError where a step gives, or has inside, a value that isn't finite; NotImplementedError where
    its arguments ask for what isn't known.
    """
    values = dict(values)
    for step in steps:

        def finite(x: Tensor, step: Step = step) -> Tensor:
            x = rounded(x) if step.results[0][1] == "fp16" else x
            if not x.isfinite().all():
                raise FloatingPointError(f"{step.kind} {step.results[0][0]} is not finite (NaN or infinite)")
            return x

        arguments = {name: _resolved(value, values) for name, value in step.arguments.items()}
        try:
            results = OPERATIONS[step.kind](_Operands(**arguments, rounded=finite))
        except NotImplementedError as problem:
            raise NotImplementedError(f"{step.kind} with {problem}") from None
        for (name, _), result in zip(step.results, (results,) if isinstance(results, Tensor) else results):  # noqa: B905
            values[name] = finite(result)
        for name in step.done_with:
            del values[name]
    return values


class _Operands(SimpleNamespace):
    """An operation's arguments under MIL's names, None where there is none; `rounded` rounds as the result is."""

    def __getattr__(self, name: str) -> Any:
        return None


def _resolved(value: Any, values: dict[str, Tensor]) -> Any:
    if isinstance(value, Name):
        return values[value]
    return [_resolved(part, values) for part in value] if isinstance(value, list) else value


def read_program(package: Path, rounded: Callable[[Tensor], Tensor] = to_fp16) -> tuple[int, list[Step]]:
    """The side S of the input and the program's operations, constants already in their arguments, fp16 ones rounded."""
    from stlm_edge.runtimes.coreml import import_coremltools, size_of_contract

    coremltools = import_coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load

    model = coremltools.proto.Model_pb2.Model()
    try:
        model.ParseFromString((package / coreml.MODEL).read_bytes())
        weights = str((package / coreml.WEIGHTS).parent)
        program = load(model, model.specificationVersion, weights)
        operations = list(program.functions["main"].operations)
    except Exception as error:  # protobuf's, the blob reader's and MIL's own have no common base
        problem = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{package}: coremltools {coremltools.__version__} cannot read its program ({problem}); export anew"
        ) from None
    size = size_of_contract(package, model.description)
    unknown = sorted({o.op_type for o in operations} - OPERATIONS.keys() - {"const"})
    unknown = [kind for kind in unknown if not kind.startswith("constexpr_")]
    if unknown:
        raise UsageError(
            f"{package}: holds the MIL operation {', '.join(unknown)}, which the MIL evaluator does not know; "
            "export with the locked version of coremltools, or check the package on macOS"
        )
    return size, _steps(operations, {"anomaly_map", "score"}, rounded)


def _steps(operations: list[Any], outputs: set[str], rounded: Callable[[Tensor], Tensor]) -> list[Step]:
    constants: dict[Any, Any] = {}
    for operation in operations:
        if operation.op_type.startswith("constexpr_"):
            constants[operation.outputs[0]] = _constant(operation.materialized_val_inference(), rounded)

    def argument(var: Any) -> Any:
        if isinstance(var, (list, tuple)):
            return [argument(part) for part in var]
        if var in constants:
            return constants[var]
        if var.op is not None and var.op.op_type == "const":
            return constants.setdefault(var, _constant(var.val, rounded))
        return Name(var.name)

    steps = []
    for operation in operations:
        if operation.op_type == "const" or operation.op_type.startswith("constexpr_"):
            continue
        arguments = {name: argument(var) for name, var in operation.inputs.items()}
        results = [(var.name, _kind(var)) for var in operation.outputs]
        steps.append(Step(operation.op_type, arguments, results, []))
    needed = set(outputs)
    for step in reversed(steps):
        used = {name for value in step.arguments.values() for name in (value if isinstance(value, list) else [value])}
        last = {name for name in used if isinstance(name, Name)} | {name for name, _ in step.results}
        step.done_with.extend(sorted(last - needed))
        needed |= last
    return steps


def _constant(value: Any, rounded: Callable[[Tensor], Tensor]) -> Any:
    """A float tensor in float32, an fp16 one rounded; anything else as Python's own number, text or list."""
    array = np.asarray(value)
    if array.dtype.kind != "f":
        return array.tolist()
    tensor = torch.tensor(array.astype(np.float32))
    tensor = rounded(tensor) if array.dtype == np.float16 else tensor
    return tensor if array.ndim else tensor.item()


def _kind(var: Any) -> str:
    return var.dtype.__name__ if hasattr(var.dtype, "__name__") else str(var.dtype)
