"""A test double of the `tensorrt` package: the documented calls of 10.3 and 11.4 that are used, by onnxruntime.

Device memory is what `cudart.c` allocates: its addresses are shifted, so that a host address used as a device address,
or the reverse, is a crash.
"""

import ctypes
from enum import IntEnum
from types import SimpleNamespace

import numpy as np
import onnxruntime

__version__ = "10.3.0"
SHIFT, STREAM = 1 << 60, 0x57  # as in cudart.c
_TYPES = {"tensor(uint8)": ("UINT8", np.uint8), "tensor(float)": ("FLOAT", np.float32)}
built = []  # for tests to count


class Logger:
    ERROR = 1

    def __init__(self, severity):
        assert severity == self.ERROR


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class Builder:
    def __init__(self, logger):
        assert isinstance(logger, Logger)

    def create_network(self, flags):
        return SimpleNamespace(flags=flags, onnx=b"")

    def create_builder_config(self):
        return SimpleNamespace()

    def build_serialized_network(self, network, config):
        if not network.flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED:
            return None
        built.append(network.onnx)
        return memoryview(b"engine of TensorRT " + __version__.encode().ljust(20) + network.onnx)


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse(self, model):
        try:
            onnxruntime.InferenceSession(model)
        except Exception as error:
            self.errors = [f"In node 7 with name: odd (parseNode): UNSUPPORTED_NODE: {type(error).__name__}"]
            self.num_errors = 1
            return False
        self.network.onnx = model
        return True

    def get_error(self, index):
        return self.errors[index]


class Runtime:
    def __init__(self, logger):
        assert isinstance(logger, Logger)

    def deserialize_cuda_engine(self, plan):
        head = b"engine of TensorRT " + __version__.encode().ljust(20)
        return Engine(plan[len(head) :]) if plan.startswith(head) else None


class Engine:
    def __init__(self, model):
        self.session = onnxruntime.InferenceSession(model)
        self.tensors = {value.name: value for value in [*self.session.get_inputs(), *self.session.get_outputs()]}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=_TYPES[self.tensors[name].type][0])

    def get_tensor_shape(self, name):
        return tuple(self.tensors[name].shape)

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.addresses = engine, {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        if stream != STREAM or self.addresses.keys() != self.engine.tensors.keys():
            return False
        given = {value.name: self.view(value) for value in self.engine.session.get_inputs()}
        outputs = self.engine.session.get_outputs()
        for value, answer in zip(outputs, self.engine.session.run(None, given), strict=True):
            self.view(value)[...] = answer
        return True

    def view(self, value):
        kind = np.dtype(_TYPES[value.type][1])
        memory = (ctypes.c_char * (int(np.prod(value.shape)) * kind.itemsize)).from_address(
            self.addresses[value.name] - SHIFT
        )
        return np.frombuffer(memory, kind).reshape(value.shape)
