"""Curves: what a training logs can be read back by TensorBoard's own format."""

import importlib.util
import struct

import numpy as np
import pytest

from stlm_edge.curves import FOLDER, open_curves
from stlm_edge.errors import UsageError


def events(folder):
    """The records of TensorBoard's event files: length, checksum, an Event message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event()
        event.ParseFromString(data[12 : 12 + length])
        found += event.summary.value
        data = data[16 + length :]
    return found


def test_numbers_and_pictures_reach_tensorboard(tmp_path):
    curves = open_curves("tensorboard", tmp_path, {})
    curves.numbers({"loss": 0.5, "rate": 1.0}, 3)
    curves.picture("validation", np.zeros((8, 16, 3), np.uint8), 3)
    curves.close()
    values = {value.tag: value for value in events(tmp_path / FOLDER)}
    assert values["loss"].simple_value == 0.5
    assert (values["validation"].image.height, values["validation"].image.width) == (8, 16)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_without_wandb_the_line_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="not installed; pip install wandb, or use --curves tensorboard"):
        open_curves("wandb", tmp_path, {})
