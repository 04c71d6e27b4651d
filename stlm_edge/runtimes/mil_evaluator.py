"""Compute a saved Core ML program with torch, where there is no Core ML: everywhere but on macOS.

It reads the *saved* package, weights included, and computes its operations one by one (MIL, the model intermediate
language: apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html). Every value that the program
declares as fp16 is rounded to it, as are the steps inside norms, whose squares may overflow; sums are float32. Apple
does not document what the hardware does with subnormals, fp16 values below 6.1e-5, so there are two roundings, which
keep them or set them to 0, and a package has to pass with both.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stlm_edge.errors import UsageError
from stlm_edge.formats import coreml
from stlm_edge.runtimes import Runtime, one_line
from stlm_edge.runtimes.coreml import check_description, import_coremltools


def _conv(o: Any) -> Tensor:
    if o.pad_type not in ("custom", "valid"):
        raise NotImplementedError(f"pad_type {o.pad_type}")
    top, bottom, left, right = o.pad if o.pad_type == "custom" else (0, 0, 0, 0)
    padded = F.pad(o.x, (left, right, top, bottom))
    return F.conv2d(padded, o.weight, o.bias, o.strides, 0, o.dilations, o.groups)


def _batch_norm(o: Any) -> Tensor:
    shape = (1, -1, *[1] * (o.x.dim() - 2))
    deviation = (o.variance + o.epsilon).sqrt().reshape(shape)
    y = (o.x - o.mean.reshape(shape)) / deviation
    return y * (1 if o.gamma is None else o.gamma.reshape(shape)) + (0 if o.beta is None else o.beta.reshape(shape))


def _gelu(o: Any) -> Tensor:
    if o.mode == "SIGMOID_APPROXIMATION":
        return o.x * torch.sigmoid(1.702 * o.x)
    return F.gelu(o.x, approximate="none" if o.mode == "EXACT" else "tanh")


def _layer_norm(o: Any) -> Tensor:
    axes = list(o.axes)
    if axes != [-1] and axes != [o.x.dim() - 1]:
        raise NotImplementedError(f"axes {axes}")
    centred = o.rounded(o.x - o.rounded(o.x.mean(-1, keepdim=True)))
    variance = o.rounded(o.rounded(centred * centred).mean(-1, keepdim=True))
    y = centred / o.rounded((variance + o.epsilon).sqrt())
    return y * (1 if o.gamma is None else o.gamma) + (0 if o.beta is None else o.beta)


def _matmul(o: Any) -> Tensor:
    x = o.x.transpose(-1, -2) if o.transpose_x else o.x
    return x @ (o.y.transpose(-1, -2) if o.transpose_y else o.y)


def _pad(o: Any) -> Tensor:
    if o.mode != "constant":
        raise NotImplementedError(f"mode {o.mode}")
    last_axis_first = np.reshape(o.pad, (-1, 2))[::-1]  # before and after, first axis first in MIL
    return F.pad(o.x, last_axis_first.ravel().tolist(), value=o.constant_val)


def _slice_by_index(o: Any) -> Tensor:
    rank = o.x.dim()
    no = [False] * rank
    if any(o.squeeze_mask or no):
        raise NotImplementedError("squeeze_mask")
    ranges = zip(o.begin, o.end, o.stride or [1] * rank, o.begin_mask or no, o.end_mask or no, strict=True)
    return o.x[tuple(slice(None if b_open else b, None if e_open else e, s) for b, e, s, b_open, e_open in ranges)]


def _split(o: Any) -> tuple[Tensor, ...]:
    if o.split_sizes is None:
        return o.x.tensor_split(o.num_splits, dim=o.axis)
    return o.x.split(list(o.split_sizes), dim=o.axis)


def _concat(o: Any) -> Tensor:
    if o.interleave:
        raise NotImplementedError("interleave")
    return torch.cat(o.values, dim=o.axis)


def _topk(o: Any) -> tuple[Tensor, ...]:
    found = o.x.topk(o.k, dim=o.axis, largest=not o.ascending, sorted=True)
    return (found.values,) if o.return_indices is False else (found.values, found.indices)


def _upsample_bilinear(o: Any) -> Tensor:
    if o.half_pixel_centers not in (None, not o.align_corners):
        raise NotImplementedError(f"half_pixel_centers {o.half_pixel_centers} with align_corners {o.align_corners}")
    factors = [o.scale_factor_height, o.scale_factor_width]
    return F.interpolate(o.x, scale_factor=factors, mode="bilinear", align_corners=o.align_corners)


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "add": lambda o: o.x + o.y,
    "batch_norm": _batch_norm,
    "cast": lambda o: o.x,  # between floats; the result is rounded to its declared type
    "concat": _concat,
    "conv": _conv,
    "expand_dims": lambda o: o.x[tuple(None if i in o.axes else slice(None) for i in range(o.x.dim() + len(o.axes)))],
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "linear": lambda o: F.linear(o.x, o.weight, o.bias),
    "matmul": _matmul,
    "maximum": lambda o: torch.maximum(o.x, torch.as_tensor(o.y)),
    "mul": lambda o: o.x * o.y,
    "pad": _pad,
    "pow": lambda o: o.x**o.y,
    "real_div": lambda o: o.x / o.y,
    "reduce_l2_norm": lambda o: o.rounded(o.x * o.x).sum(tuple(o.axes), keepdim=o.keep_dims).sqrt(),
    "reduce_mean": lambda o: o.x.mean(tuple(o.axes), keepdim=o.keep_dims),
    "relu": lambda o: o.x.relu(),
    "reshape": lambda o: o.x.reshape(tuple(o.shape)),
    "rsqrt": lambda o: (o.x + (o.epsilon or 0)).rsqrt(),
    "sigmoid": lambda o: o.x.sigmoid(),
    "slice_by_index": _slice_by_index,
    "softmax": lambda o: o.x.softmax(o.axis),
    "split": _split,
    "sqrt": lambda o: o.x.sqrt(),
    "squeeze": lambda o: o.x.squeeze(tuple(o.axes)),
    "sub": lambda o: o.x - o.y,
    "tile": lambda o: o.x.repeat(tuple(o.reps)),
    "topk": _topk,
    "transpose": lambda o: o.x.permute(tuple(o.perm)),
    "upsample_bilinear": _upsample_bilinear,
}


class Name(str):
    """The name of an argument that an earlier operation computes."""


class Step(NamedTuple):
    """An operation of the program."""

    kind: str  # the operation's name in MIL
    arguments: dict[str, Any]  # values, or the `Name`s of earlier results
    results: list[tuple[str, str]]  # name and type of each
    done_with: list[str]  # names that no later step needs


class MilEvaluator(Runtime):
    """A saved `.mlpackage`, computed by torch; `rounded` rounds what is declared as fp16.

    Raises UsageError when coremltools is missing, or the package has other inputs or outputs or unknown operations.
    """

    failures = (FloatingPointError,)

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

    def _infer(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        tensor = torch.tensor(image).permute(2, 0, 1)[None].float()
        try:
            with torch.inference_mode():
                values = compute(self.steps, {"image": tensor}, self.rounded)
        except NotImplementedError as problem:
            raise _unknown(self.artifact, str(problem)) from None
        return values["anomaly_map"][0, 0].numpy(), values["score"].item()


def to_fp16(x: Tensor) -> Tensor:
    """Round floats to the nearest fp16."""
    return x.half().float() if x.is_floating_point() else x


def to_fp16_without_subnormals(x: Tensor) -> Tensor:
    """Round to fp16, and set what is smaller than its smallest normal number, 2⁻¹⁴, to 0."""
    return to_fp16(x).masked_fill(x.abs() < 2**-14, 0) if x.is_floating_point() else x


def compute(
    steps: list[Step], values: dict[str, Tensor], rounded: Callable[[Tensor], Tensor] = to_fp16
) -> dict[str, Tensor]:
    """Compute a program from its inputs, and return its outputs and other values that no step is done with.

    Raises FloatingPointError for a value that is not finite, NotImplementedError for unsupported arguments.
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
    """An operation's arguments by MIL's names, None for a missing one; `rounded` rounds to the result's type."""

    def __getattr__(self, name: str) -> Any:
        return None


def _resolved(value: Any, values: dict[str, Tensor]) -> Any:
    if isinstance(value, Name):
        return values[value]
    return [_resolved(part, values) for part in value] if isinstance(value, list) else value


def read_program(package: Path, rounded: Callable[[Tensor], Tensor] = to_fp16) -> tuple[int, list[Step]]:
    """Return the side S of the input and the operations, with constants in their arguments, rounded if fp16."""
    coremltools = import_coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load

    model = coremltools.proto.Model_pb2.Model()
    try:
        model.ParseFromString((package / coreml.MODEL).read_bytes())
        weights = str((package / coreml.WEIGHTS).parent)
        program = load(model, model.specificationVersion, weights)
        operations = list(program.functions["main"].operations)
    except Exception as error:  # exceptions of protobuf, the blob reader and MIL have no common base
        raise UsageError(
            f"{package}: coremltools {coremltools.__version__} cannot read its program ({one_line(error)}); "
            "export again"
        ) from None
    size = check_description(package, model.description)
    if unknown := sorted({o.op_type for o in operations if not _is_constant(o)} - OPERATIONS.keys()):
        raise _unknown(package, ", ".join(unknown))
    return size, _steps(operations, {"anomaly_map", "score"}, rounded)


def _unknown(artifact: str | Path, operations: str) -> UsageError:
    return UsageError(
        f"{artifact}: unsupported MIL operation {operations}; export with the locked version of coremltools, or check "
        "the package on macOS"
    )


def _steps(operations: list[Any], outputs: set[str], rounded: Callable[[Tensor], Tensor]) -> list[Step]:
    constants: dict[Any, Any] = {}
    steps = []

    def argument(var: Any) -> Any:
        if isinstance(var, (list, tuple)):
            return [argument(part) for part in var]
        return constants[var] if var in constants else Name(var.name)

    for operation in operations:
        if _is_constant(operation):
            (var,) = operation.outputs
            value = var.val if operation.op_type == "const" else operation.materialized_val_inference()
            constants[var] = _constant(value, rounded)
            continue
        arguments = {name: argument(var) for name, var in operation.inputs.items()}
        results = [(var.name, getattr(var.dtype, "__name__", str(var.dtype))) for var in operation.outputs]
        steps.append(Step(operation.op_type, arguments, results, []))
    needed = set(outputs)
    for step in reversed(steps):
        used = {name for value in step.arguments.values() for name in (value if isinstance(value, list) else [value])}
        last = {name for name in used if isinstance(name, Name)} | {name for name, _ in step.results}
        step.done_with.extend(sorted(last - needed))
        needed |= last
    return steps


def _is_constant(operation: Any) -> bool:
    return operation.op_type == "const" or operation.op_type.startswith("constexpr_")


def _constant(value: Any, rounded: Callable[[Tensor], Tensor]) -> Any:
    """Return floats in float32, rounded if fp16, and anything else as a Python number, text or list."""
    array = np.asarray(value)
    if array.dtype.kind != "f":
        return array.tolist()
    tensor = torch.tensor(array.astype(np.float32))
    tensor = rounded(tensor) if array.dtype == np.float16 else tensor
    return tensor if array.ndim else tensor.item()
