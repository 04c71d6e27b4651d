"""Builds a TensorRT engine from a bundle's typed ONNX file on the device itself, keeps it, and runs it.

    python -m stlm_edge.runtimes.tensorrt --bundle B          build the engine now, not at the first image

An engine suits only the GPU, TensorRT and driver that built it, so it never travels: the bundle carries ONNX, and the
engine stands beside the bundle in `<bundle>.engines/`, named after the GPU, both versions and the ONNX file's sha256.
An engine is machine code: whoever can write to that folder can run code here.

Needs TensorRT ≥ 10.3 (JetPack 6.1 on, desktop up to 11) with its Python package, and libcudart. The network is strongly
typed: the file's types decide precision, no builder flag does. Written against the documented API
(docs.nvidia.com/deeplearning/tensorrt, Python API 10.3 and 11.4; CUDA Runtime API) and tested against a stand-in that
has those calls and no others; it has not run on a GPU yet.
"""

import argparse
import contextlib
import ctypes
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.files import replacing
from stlm_edge.formats.onnx import check_self_contained
from stlm_edge.verdict import score_of_map

OLDEST = (10, 3)
_TEGRA = Path("/etc/nv_tegra_release")
_LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "cudart64_13.dll", "cudart64_12.dll")
_PACKAGED = ("*/lib/libcudart.so.*", "*/bin/cudart64_*.dll", "*/bin/*/cudart64_*.dll")
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_TYPES = {"UINT8": np.uint8, "FLOAT": np.float32}


class TensorRT:
    """An engine whose input is `image`, uint8 1×S×S×3, and whose outputs are `anomaly_map`, float32 1×1×S×S, and, where
    the graph computes it, `score`, float32 of shape 1. Built from the ONNX file first where none is kept.

    Raises UsageError when TensorRT or CUDA is missing or too old, or the graph is another one; JobError when the engine
    can't be built.
    """

    name = "tensorrt"

    def __init__(self, artifact: str | Path, threads: int | None = None) -> None:
        built = Path(artifact).suffix == ".engine"
        if not built:
            check_self_contained(artifact)
        self.artifact = artifact
        self._trt = _tensorrt()
        self._cuda = Cuda()
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(self._logger)
        plan = Path(artifact).read_bytes() if built else engine_for(Path(artifact), self._trt, self._cuda)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            again = (
                "it is for another GPU or TensorRT: export anew here" if built else f"delete {_folder(Path(artifact))}"
            )
            raise JobError(f"{artifact}: TensorRT cannot load the engine; {again}")
        self._engine = engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise JobError(f"{artifact}: TensorRT cannot prepare the engine, most likely for want of memory")
        self.size, self._tensors = self._bind()

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """uint8 RGB S×S×3 in; anomaly map float32 S×S and score out.

        Raises ValueError for another shape or type, JobError when an output isn't finite or the engine fails.
        """
        if image.shape != (self.size, self.size, 3) or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self.size}×{self.size}×3, found {image.dtype} {image.shape}")
        host, address = self._tensors["image"]
        host[...] = image[None]
        cuda, stream = self._cuda, self._cuda.stream
        cuda.copy(address, host.ctypes.data, host.nbytes, _TO_DEVICE)
        if not self._context.execute_async_v3(stream):
            raise JobError(f"{self.artifact}: TensorRT failed to run the engine")
        cuda.wait()
        for name in set(self._tensors) - {"image"}:
            host, address = self._tensors[name]
            cuda.copy(host.ctypes.data, address, host.nbytes, _TO_HOST)
        anomaly_map = self._tensors["anomaly_map"][0][0, 0].copy()
        score = float(self._tensors["score"][0][0]) if "score" in self._tensors else score_of_map(anomaly_map)
        if not (np.isfinite(anomaly_map).all() and np.isfinite(score)):
            raise JobError(f"{self.artifact}: the anomaly map or score is not finite (NaN or infinite)")
        return anomaly_map, score

    def _bind(self) -> tuple[int, dict[str, tuple[np.ndarray, int]]]:
        """S, and each tensor's host array and device address, which the engine is told, by what the tensor is.

        Torch-TensorRT gives names of its own, so tensors are known by type and shape.
        """
        engine, found = self._engine, {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            found[name] = (engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name)))
        size = max((shape[1] for kind, shape in found.values() if kind == "UINT8" and len(shape) == 4), default=0)
        known = {
            ("UINT8", (1, size, size, 3)): "image",
            ("FLOAT", (1, 1, size, size)): "anomaly_map",
            ("FLOAT", (1,)): "score",
        }
        roles = {known.get(tensor, ""): name for name, tensor in found.items()}
        if len(roles) != len(found) or set(roles) not in ({"image", "anomaly_map"}, set(known.values())):
            raise UsageError(
                f"{self.artifact}: another graph: found {str(found)[:200]}; expected image UINT8 (1, S, S, 3), "
                "anomaly_map FLOAT (1, 1, S, S) and perhaps score FLOAT (1,)"
            )
        tensors = {}
        for role, name in roles.items():
            kind, shape = found[name]
            host = np.zeros(shape, _TYPES[kind])
            tensors[role] = host, self._cuda.allocate(host.nbytes)
            self._context.set_tensor_address(name, tensors[role][1])
        return size, tensors


class Device(NamedTuple):
    """What an engine is tied to."""

    gpu: str
    tensorrt: str
    driver: str


class Cuda:
    """The few calls of the CUDA runtime that are needed, by ctypes: JetPack has no Python package for them.

    Raises UsageError when libcudart or a GPU is missing, JobError when a call fails.
    """

    def __init__(self) -> None:
        self._library = _load_cudart()
        self._allocated: list[int] = []
        count = ctypes.c_int()
        if self._library.cudaGetDeviceCount(ctypes.byref(count)) or count.value < 1:
            raise UsageError("CUDA finds no GPU here; expected an NVIDIA one with its driver, run this on the device")
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        self.stream: int = stream.value or 0

    def allocate(self, size: int) -> int:
        """The address of this many bytes on the device, which live as long as this object."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        self._allocated.append(address.value or 0)
        return self._allocated[-1]

    def copy(self, to: int, source: int, size: int, kind: int) -> None:
        arguments = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_int(kind)
        self._call("cudaMemcpyAsync", *arguments, ctypes.c_void_p(self.stream))
        self.wait()

    def wait(self) -> None:
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def driver(self) -> str:
        """The newest CUDA that the driver serves, such as 12.6."""
        version = ctypes.c_int()
        self._call("cudaDriverGetVersion", ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def gpu(self) -> str:
        """Compute capability and number of multiprocessors of the first GPU, such as sm87x16."""
        return "sm{}{}x{}".format(*(self._attribute(number) for number in (75, 76, 16)))

    def _attribute(self, number: int) -> int:
        """cudaDeviceAttr: 75 and 76 are the compute capability's two parts, 16 the multiprocessors."""
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), ctypes.c_int(0))
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        if error := getattr(self._library, function)(*arguments):
            raise JobError(f"CUDA: {function} failed ({self._library.cudaGetErrorString(error).decode()})")

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the interpreter's end the driver may be gone
            for address in self._allocated:
                self._library.cudaFree(ctypes.c_void_p(address))


def engine_for(artifact: Path, trt: Any, cuda: Cuda) -> bytes:
    """The engine of this ONNX file for this device: the one that is kept, or one built now and kept.

    Raises JobError when TensorRT refuses the file, or the engine can't be written.
    """
    driver = Path("/proc/driver/nvidia/version")  # absent on Jetson, whose driver comes with its Linux
    number = re.search(r"\b\d+\.\d+(\.\d+)?\b", _text(driver)) or re.search(r"R\d+.*?REVISION: [\d.]+", _text(_TEGRA))
    versions = cuda.driver() + (f"-{number[0]}" if number else "")
    path = engine_path(artifact, Device(cuda.gpu(), trt.__version__, versions))
    if path.is_file() and not path.is_symlink():
        return path.read_bytes()
    engine = build(artifact, trt)
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(engine)
    except OSError as error:
        raise JobError(f"{path}: the engine cannot be kept ({error.strerror}); make the folder writable") from None
    return engine


def engine_path(artifact: Path, device: Device) -> Path:
    """Where this ONNX file's engine for this device is kept: beside the bundle, never in it."""
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()[:16]
    named = f"{device.gpu}-trt{device.tensorrt}-driver{device.driver}-{digest}"
    return _folder(artifact) / (re.sub(r"[^\w.\-]+", "_", named) + ".engine")


def build(artifact: Path, trt: Any) -> bytes:
    """An engine for the GPU at hand. Takes minutes. Raises JobError with the parser's or builder's reason."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # 11 knows no other networks than strongly typed ones; the flag is still there and does nothing.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(artifact.read_bytes()):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(min(3, parser.num_errors)))
        raise JobError(f"{artifact}: TensorRT {trt.__version__} cannot read it: {reasons[:300]}")
    engine = builder.build_serialized_network(network, builder.create_builder_config())
    if engine is None:
        raise JobError(f"{artifact}: TensorRT {trt.__version__} cannot build an engine; trtexec --verbose tells why")
    return bytes(engine)


def trtexec_line(artifact: str = "model.onnx") -> str:
    """The command that builds the same engine where there is no Python."""
    return f"trtexec --onnx={artifact} --stronglyTyped --saveEngine={Path(artifact).stem}.engine"


def check_version(version: str) -> None:
    """Raise UsageError for a TensorRT that cannot serve: before 10.3."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        raise UsageError(
            f"TensorRT {version}: expected 10.3 or newer; 8.x (JetPack 5 and 6.0) has no strongly typed networks that "
            "keep these types, reads ONNX up to opset 17 and has no Gelu; update to JetPack 6.1, or run a cpu bundle"
        )


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise UsageError(
            f"tensorrt cannot be imported ({error}); on a Jetson it comes with JetPack 6.1 or newer (a virtual "
            "environment needs --system-site-packages), elsewhere: pip install tensorrt"
        ) from None
    check_version(tensorrt.__version__)
    return tensorrt


def _load_cudart() -> Any:
    for name in (*_LIBRARIES, *_from_packages()):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            library.cudaGetErrorString.restype = ctypes.c_char_p
            return library
    raise UsageError(
        f"the CUDA runtime cannot be loaded; expected one of {', '.join(_LIBRARIES)} on the library path, or pip's "
        "nvidia-cuda-runtime"
    )


def _from_packages() -> list[str]:
    """libcudart as NVIDIA's Python packages hold it, which `pip install tensorrt` brings, newest first."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for folder in folders for name in _PACKAGED for path in Path(folder).glob(name)]
    return [str(path) for path in sorted(found, key=lambda path: path.name, reverse=True)]


def _folder(artifact: Path) -> Path:
    bundle = artifact.resolve().parent
    return bundle.with_name(f"{bundle.name}.engines")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:4096]
    except OSError:
        return ""


def main() -> None:
    """Build a bundle's engine."""
    parser = argparse.ArgumentParser(description="Build a bundle's TensorRT engine on this device.")
    parser.add_argument("--bundle", required=True, help="bundle folder, of target jetson or desktop-gpu")
    arguments = parser.parse_args()
    with exit_with_one_line("interrupted; no engine was kept"):
        print(build_engine(Path(arguments.bundle)))


def build_engine(bundle: Path) -> Path:
    """Build the engine of the bundle in this folder unless it is kept already; returns the folder of engines."""
    from stlm_edge.bundle import open_bundle

    opened = open_bundle(bundle)
    if opened.manifest.runtime != "tensorrt":
        raise UsageError(
            f"{bundle}: a bundle for {opened.manifest.runtime}, expected one of target jetson or desktop-gpu"
        )
    artifact = opened.folder / opened.manifest.artifact
    TensorRT(artifact)
    return _folder(artifact)


if __name__ == "__main__":
    main()
