"""Converters, one module per artifact format: each takes the trained model and writes an artifact.

`onnx` exports the graph that `tensorrt`, `web` and `openvino` start from; `tflite`, `coreml` and `torch_tensorrt`
convert the model themselves.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from stlm_edge.errors import UsageError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings, log lines and progress bars of conversion packages; raise UsageError if one isn't installed."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise UsageError(f'{error.name} is not installed; pip install "stlm-edge[export]"') from None
    finally:
        logging.disable(disabled)
