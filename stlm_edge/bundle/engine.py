"""TensorRT engines, built from a bundle's typed ONNX file on the device itself and kept there.

An engine suits only the GPU, TensorRT and driver that built it, and is kept beside the bundle in `<bundle>.engines/`.
It is machine code: whoever can write to that folder can run code here. The network is strongly typed: the ONNX file's
types decide precision. Tested against a test double of TensorRT's documented API; it has not run on a GPU yet.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from stlm_edge.errors import JobError, UsageError
from stlm_edge.files import replacing, sha256_of
from stlm_edge.formats.onnx import check_self_contained
from stlm_edge.runtimes.tensorrt import Cuda, import_tensorrt

OLDEST = (10, 3)
TRTEXEC = "trtexec --onnx=model.onnx --stronglyTyped --saveEngine=model.engine"  # builds the same engine without Python
_DRIVER_FILES = {  # JetPack's driver is part of its Linux
    Path("/proc/driver/nvidia/version"): r"\b\d+\.\d+(\.\d+)?\b",
    Path("/etc/nv_tegra_release"): r"R\d+.*?REVISION: [\d.]+",
}


class Device(NamedTuple):
    """The hardware and versions that an engine is tied to."""

    gpu: str
    tensorrt: str
    driver: str


def engine_for(artifact: Path) -> Path:
    """Return the engine of an ONNX file for this device, built first if none is kept, which takes minutes.

    Raises UsageError when TensorRT or CUDA is missing or too old, JobError when TensorRT rejects the file or the engine
    cannot be written.
    """
    check_self_contained(artifact)
    trt = import_tensorrt()
    check_version(trt.__version__)
    cuda = Cuda()
    path = engine_path(artifact, Device(cuda.gpu(), trt.__version__, cuda.driver() + _driver_release()))
    if path.is_file() and not path.is_symlink():
        return path
    engine = build(artifact, trt)
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(engine)
    except OSError as error:
        raise JobError(f"{path}: cannot be written ({error.strerror}); make the folder writable") from None
    return path


def engine_path(artifact: Path, device: Device) -> Path:
    """Return where the engine of an ONNX file for a device is kept: beside the bundle, never in it."""
    bundle = artifact.resolve().parent
    name = f"{device.gpu}-trt{device.tensorrt}-driver{device.driver}-{sha256_of(artifact)[:16]}"
    return bundle.with_name(f"{bundle.name}.engines") / (re.sub(r"[^\w.\-]+", "_", name) + ".engine")


def build(artifact: Path, trt: Any) -> bytes:
    """Build an engine for this GPU, which takes minutes. Raises JobError with the reason of the parser or builder."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # TensorRT 11 has strongly typed networks only; it accepts the flag without effect.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(artifact.read_bytes()):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(min(3, parser.num_errors)))
        raise JobError(f"{artifact}: TensorRT {trt.__version__} cannot parse it: {reasons[:300]}")
    engine = builder.build_serialized_network(network, builder.create_builder_config())
    if engine is None:
        raise JobError(f"{artifact}: TensorRT {trt.__version__} cannot build an engine; see trtexec --verbose")
    return bytes(engine)


def check_version(version: str) -> None:
    """Raise UsageError for a TensorRT before 10.3."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        raise UsageError(
            f"TensorRT {version}: expected 10.3 or newer; 8.x (JetPack 5 and 6.0) cannot keep these types and has no "
            "Gelu; update to JetPack 6.1, or run a cpu bundle"
        )


def _driver_release() -> str:
    """Return the release of the GPU's driver with a leading hyphen, or nothing where it cannot be read."""
    for path, pattern in _DRIVER_FILES.items():
        if path.is_file() and (release := re.search(pattern, path.read_text(errors="replace")[:4096])):
            return f"-{release[0]}"
    return ""
