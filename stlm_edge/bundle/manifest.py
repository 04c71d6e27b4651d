"""`manifest.json`: everything a device needs to know of a bundle, as frozen dataclasses that are read strictly.

A field that is added, removed or changes its meaning makes a new `format_version`. The JSON Schema of each version is
in `stlm_edge/schemas/`.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from stlm_edge import strict_json
from stlm_edge.bundle.parity import Parity
from stlm_edge.errors import UsageError
from stlm_edge.strict_json import Between, Items, Pattern
from stlm_edge.threshold import DecisionThreshold

FORMAT_VERSIONS = (1,)
MANIFEST = "manifest.json"
MAX_SIZE = 4096
MAX_GOLDEN_BYTES = 8_000_000
_PART = r"[A-Za-z0-9_][A-Za-z0-9._\-]{0,99}"

Word = Annotated[str, Pattern(_PART, "letters, digits, '.', '_' and '-'")]
FilePath = Annotated[
    str, Pattern(rf"{_PART}(/{_PART}){{0,4}}", "a plain path inside the bundle such as 'golden/01.png'")
]
Sha256 = Annotated[str, Pattern("[0-9a-f]{64}", "64 hexadecimal digits")]
Count = Annotated[int, Between(0)]


@dataclass(frozen=True)
class ListedFile:
    """A file of the bundle."""

    path: FilePath
    sha256: Sha256
    bytes: Annotated[int, Between(1, 1 << 31)]


@dataclass(frozen=True)
class Input:
    """The artifact's input: an image resized to size×size by `preprocessing`. Normalisation is inside the graph.

    Values are 0 to 255, whole numbers in float32, too.
    """

    name: Word
    size: Annotated[int, Between(32, MAX_SIZE), "side of the square, pixels; a multiple of 32"]
    layout: Literal["NHWC"]
    dtype: Literal["uint8", "float32"]
    color: Literal["RGB"]
    preprocessing: Annotated[str, "how an image is decoded and resized"]
    sixteen_bit: Annotated[str, "how 16-bit grey values become 8-bit ones"]


@dataclass(frozen=True)
class MapOutput:
    """The anomaly map, float32, shape 1×1×size×size."""

    name: Word
    shape: Annotated[tuple[int, ...], Items(4, 4)]


@dataclass(frozen=True)
class ScoreOutput:
    """The image score, float32, shape 1."""

    name: Word


@dataclass(frozen=True)
class Outputs:
    """The artifact's outputs. If `score` is null, the score is computed from the map by `score_rule`."""

    anomaly_map: MapOutput
    score: ScoreOutput | None


@dataclass(frozen=True)
class GoldenTensor:
    """A golden image after decoding and resizing: size×size×3, RGB, as raw bytes or as a PNG."""

    file: FilePath
    shape: Annotated[tuple[int, ...], Items(3, 3)]
    dtype: Literal["uint8"]
    encoding: Literal["raw", "png"]


@dataclass(frozen=True)
class GoldenMap:
    """The trained model's map at [offset::stride] on both axes, raw float32, little-endian, row by row."""

    file: FilePath
    shape: Annotated[tuple[int, ...], Items(2, 2)]
    dtype: Literal["float32"]
    byte_order: Literal["little"]
    stride: Annotated[int, Between(1, MAX_SIZE)]
    offset: Annotated[int, Between(0, MAX_SIZE)]


@dataclass(frozen=True)
class Golden:
    """An image and the trained model's outputs."""

    name: Word
    anomalous: Annotated[bool, "the image's label, not the verdict"]
    image: FilePath
    tensor: GoldenTensor
    map: GoldenMap
    score: float


@dataclass(frozen=True)
class Manifest:
    """The manifest of a bundle, format version 1.

    Raises ValueError when its parts contradict each other.
    """

    format_version: Literal[1]
    tool_versions: Annotated[dict[str, Any], "packages that wrote the bundle: name to version"]
    target: Annotated[Word, "device class"]
    runtime: Annotated[Word, "the runtime of the artifact"]
    precision: Annotated[Word, "fp32, int8, ..."]
    files: Annotated[tuple[ListedFile, ...], Items(1, 1000), "every file of the bundle but the manifest"]
    artifact: Annotated[FilePath, "the packed model: one of `files`, or the folder of some of them"]
    input: Input
    outputs: Outputs
    score_rule: str
    decision_threshold: DecisionThreshold
    exported_threshold: Annotated[
        DecisionThreshold,
        "threshold of the export, which is also in the artifact's metadata; `stlm-calibrate` does not change it",
    ]
    verdict_delta: Annotated[
        float, Between(0), "1% of threshold − median_score: distance from the threshold within which a verdict may flip"
    ]
    provenance: Annotated[dict[str, Any], "origin of the model: data digest, seed, recipe, teacher"]
    parameters: Count
    flops: Annotated[int | None, "per image, one multiply-add counted as two"]
    parity: Annotated[Parity, "against the trained model, measured at export"]
    parity_loss_allowed: Annotated[bool, "true: exported with --allow-parity-loss in spite of `parity`"]
    golden: Annotated[tuple[Golden, ...], Items(8, 64)]

    @property
    def artifact_files(self) -> tuple[ListedFile, ...]:
        """The entries of `files` that make up the artifact: itself, or everything in its folder."""
        return tuple(file for file in self.files if (file.path + "/").startswith(self.artifact + "/"))

    def __post_init__(self) -> None:
        listed = {file.path: file.bytes for file in self.files}
        if len({path.casefold() for path in listed} | {MANIFEST}) != len(self.files) + 1:
            raise ValueError("files: a path is listed twice, or the manifest itself is")
        side = self.input.size
        if side % 32:
            raise ValueError(f"input.size: found {side}, expected a multiple of 32")
        if self.outputs.anomaly_map.shape != (1, 1, side, side):
            raise ValueError(f"outputs.anomaly_map.shape: expected [1, 1, {side}, {side}]")
        if not self.artifact_files:
            raise ValueError(f"artifact: {self.artifact} is not in files")
        for name in ("decision_threshold", "exported_threshold"):
            chosen: DecisionThreshold = getattr(self, name)
            if chosen.value < chosen.median_score or chosen.map_high < chosen.map_low:
                raise ValueError(f"{name}: value < median_score, or map_high < map_low")
        if not math.isclose(self.verdict_delta, self.decision_threshold.delta, rel_tol=1e-6, abs_tol=1e-12):
            raise ValueError(f"verdict_delta: expected {self.decision_threshold.delta!r} of this threshold")
        for index, golden in enumerate(self.golden):
            _check_golden(f"golden[{index}]", golden, side, listed)
        used = {path for g in self.golden for path in (g.image, g.tensor.file, g.map.file)}
        if (total := sum(listed[path] for path in used)) > MAX_GOLDEN_BYTES:
            raise ValueError(f"golden: {total} bytes in all, at most {MAX_GOLDEN_BYTES} are allowed")


def read_manifest(path: Path) -> Manifest:
    """Read `manifest.json`. Raises UsageError for one that is unreadable, too large, or not valid for its version."""
    value = strict_json.load(path)
    if isinstance(value, dict) and value.get("format_version") not in FORMAT_VERSIONS:
        readable = ", ".join(map(str, FORMAT_VERSIONS))
        found = re.sub(r"[^\w.\-]", "?", str(value.get("format_version"))[:20])
        raise UsageError(
            f"{path}: bundle format {found}, this release reads {readable}; "
            "install the release that wrote it or export again"
        )
    return strict_json.read(Manifest, value, str(path))


def _check_golden(where: str, golden: Golden, side: int, listed: dict[str, int]) -> None:
    for path in (golden.image, golden.tensor.file, golden.map.file):
        if path not in listed:
            raise ValueError(f"{where}: {path} is not in files")
    tensor, sampled = golden.tensor, golden.map
    if tensor.shape != (side, side, 3):
        raise ValueError(f"{where}.tensor.shape: expected [{side}, {side}, 3]")
    if tensor.encoding == "raw" and listed[tensor.file] != side * side * 3:
        raise ValueError(f"{where}.tensor: {listed[tensor.file]} bytes, expected {side * side * 3}")
    count = len(range(sampled.offset, side, sampled.stride))
    if sampled.shape != (count, count) or not count:
        raise ValueError(f"{where}.map.shape: expected [{count}, {count}] for its stride and offset")
    if listed[sampled.file] != count * count * 4:
        raise ValueError(f"{where}.map: {listed[sampled.file]} bytes, expected {count * count * 4}")
