"""Run a TensorRT engine.

Written against the documented API (docs.nvidia.com/deeplearning/tensorrt, Python API 10.3 and 11.4; CUDA Runtime API)
and tested against a test double of it; it has not run on a GPU yet.
"""

import contextlib
import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.errors import JobError, UsageError
from stlm_edge.runtimes import Runtime, check_tensors, import_package

_LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "cudart64_13.dll", "cudart64_12.dll")
_PACKAGED = ("*/lib/libcudart.so.*", "*/bin/cudart64_*.dll", "*/bin/*/cudart64_*.dll")
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_TYPES = {"UINT8": np.uint8, "FLOAT": np.float32}
_CONTRACT = "image UINT8 [1, S, S, 3], anomaly_map FLOAT [1, 1, S, S]"


class TensorRT(Runtime):
    """An engine, whose graph may leave the score to be computed from the map.

    Torch-TensorRT chooses other tensor names, so tensors are identified by type and shape. Raises UsageError when
    TensorRT or CUDA is missing, or the engine has other inputs or outputs; JobError when it cannot be loaded.
    """

    name = "tensorrt"

    def __init__(self, artifact: str | Path, threads: int | None = None) -> None:
        self.artifact = artifact
        trt = import_tensorrt()
        self._cuda = Cuda()
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(Path(artifact).read_bytes())
        if self._engine is None:
            raise JobError(
                f"{artifact}: TensorRT {trt.__version__} cannot load the engine; it was built for another GPU or "
                "TensorRT, or is damaged: delete it and build it again on this device"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise JobError(f"{artifact}: TensorRT cannot create an execution context, most likely for lack of memory")
        self.size, self._tensors = self._bind()

    def _infer(self, image: np.ndarray) -> tuple[np.ndarray, float | None]:
        host, address = self._tensors["image"]
        host[...] = image[None]
        self._cuda.copy(address, host.ctypes.data, host.nbytes, _TO_DEVICE)
        if not self._context.execute_async_v3(self._cuda.stream):
            raise JobError(f"{self.artifact}: TensorRT failed to run the engine")
        self._cuda.wait()
        for name in self._tensors.keys() - {"image"}:
            host, address = self._tensors[name]
            self._cuda.copy(host.ctypes.data, address, host.nbytes, _TO_HOST)
        score = self._tensors["score"][0][0] if "score" in self._tensors else None
        return self._tensors["anomaly_map"][0][0, 0].copy(), score

    def _bind(self) -> tuple[int, dict[str, tuple[np.ndarray, int]]]:
        """Allocate every tensor; return the side S, and each tensor's host array and device address by its role."""
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        kinds = {name: self._engine.get_tensor_dtype(name).name for name in names}
        shapes = {name: list(self._engine.get_tensor_shape(name)) for name in names}
        names.sort(key=lambda name: (kinds[name] != "UINT8", -len(shapes[name])))  # the image, the map, the score
        roles = dict(zip(("image", "anomaly_map", "score", *names[3:]), names, strict=False))
        described = [(role, kinds[name], shapes[name]) for role, name in roles.items()]
        size = check_tensors(self.artifact, described, f"{_CONTRACT}, score FLOAT [1]", _CONTRACT)
        tensors = {}
        for role, name in roles.items():
            host = np.zeros(shapes[name], _TYPES[kinds[name]])
            tensors[role] = host, self._cuda.allocate(host.nbytes)
            self._context.set_tensor_address(name, tensors[role][1])
        return size, tensors


class Cuda:
    """The few calls of the CUDA runtime that are needed, by ctypes, as JetPack has no Python package for them.

    Raises UsageError when libcudart or a GPU is missing, JobError when a call fails.
    """

    def __init__(self) -> None:
        self._library = _load_cudart()
        self._allocated: list[int] = []
        count = ctypes.c_int()
        if self._library.cudaGetDeviceCount(ctypes.byref(count)) or count.value < 1:
            raise UsageError("CUDA finds no GPU; expected an NVIDIA GPU with its driver, run this on the device")
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        self.stream: int = stream.value or 0

    def allocate(self, size: int) -> int:
        """Allocate bytes on the device for as long as this object lives, and return their address."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        self._allocated.append(address.value or 0)
        return self._allocated[-1]

    def copy(self, to: int, source: int, size: int, kind: int) -> None:
        """Copy bytes to the device or back, and wait for it."""
        arguments = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_int(kind)
        self._call("cudaMemcpyAsync", *arguments, ctypes.c_void_p(self.stream))
        self.wait()

    def wait(self) -> None:
        """Wait until the device has finished."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def driver(self) -> str:
        """Return the newest CUDA version that the driver supports, such as 12.6."""
        version = ctypes.c_int()
        self._call("cudaDriverGetVersion", ctypes.byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def gpu(self) -> str:
        """Return compute capability and number of multiprocessors of the first GPU, such as sm87x16."""
        attributes = (ctypes.c_int * 3)()
        for index, number in enumerate((75, 76, 16)):  # cudaDeviceAttr: capability, major and minor; multiprocessors
            value = ctypes.byref(attributes, index * ctypes.sizeof(ctypes.c_int))
            self._call("cudaDeviceGetAttribute", value, ctypes.c_int(number), ctypes.c_int(0))
        return "sm{}{}x{}".format(*attributes)

    def _call(self, function: str, *arguments: Any) -> None:
        if error := getattr(self._library, function)(*arguments):
            raise JobError(f"CUDA: {function} failed ({self._library.cudaGetErrorString(error).decode()})")

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the driver may be unloaded when the interpreter exits
            for address in self._allocated:
                self._library.cudaFree(ctypes.c_void_p(address))


def import_tensorrt() -> Any:
    """Import tensorrt. Raises UsageError when it is missing."""
    jetpack = "on a Jetson install JetPack 6.1 or newer (a virtual environment needs --system-site-packages)"
    return import_package("tensorrt", f"{jetpack}, elsewhere pip install tensorrt")


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
    """Return libcudart of NVIDIA's Python packages, which `pip install tensorrt` installs, newest first."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    paths = [path for folder in folders for name in _PACKAGED for path in Path(folder).glob(name)]
    return [str(path) for path in sorted(paths, key=lambda path: path.name, reverse=True)]
