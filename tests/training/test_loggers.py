"""Loggers: metrics and images can be read back from TensorBoard's files, and reach Weights & Biases."""

import importlib.util
import struct
import sys

import numpy as np
import pytest

from stlm_edge.errors import UsageError
from stlm_edge.training.loggers import FOLDER, open_logger


def events(folder):
    """The records of TensorBoard's event files: length, checksum, an Event message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, records = b"".join(path.read_bytes() for path in sorted(folder.iterdir())), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event()
        event.ParseFromString(data[12 : 12 + length])
        records.append(event)
        data = data[16 + length :]
    return records


def test_metrics_and_images_reach_tensorboard(tmp_path):
    logger = open_logger("tensorboard", tmp_path, {})
    logger.metrics({"loss": 0.5, "rate": 1.0}, 3)
    logger.image("validation", np.zeros((8, 16, 3), np.uint8), 3)
    logger.close()
    values = {value.tag: value for event in events(tmp_path / FOLDER) for value in event.summary.value}
    assert values["loss"].simple_value == 0.5
    assert (values["validation"].image.height, values["validation"].image.width) == (8, 16)


def test_resumed_run_hides_later_steps(tmp_path):
    logger = open_logger("tensorboard", tmp_path, {}, first=40)
    logger.metrics({"loss": 0.5}, 40)
    logger.close()
    assert [event.step for event in events(tmp_path / FOLDER) if event.session_log.status] == [40]


class Wandb:
    """A fake of W&B's package that records its calls."""

    def __init__(self):
        self.runs, self.logged = [], []

    def init(self, **settings):
        self.runs.append(settings)
        return self

    def log(self, values, step):
        self.logged.append((values, step))

    def Image(self, pixels):
        return pixels.shape

    def finish(self):
        self.logged.append("finished")


def test_wandb_continues_the_same_run_when_resumed(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for folder in ("run", "run", "other"):
        logger = open_logger("wandb", tmp_path / folder, {"seed": 1})
        logger.metrics({"loss": 0.5}, 3)
        logger.image("validation", np.zeros((8, 16, 3), np.uint8), 3)
        logger.close()
    first, again, other = (run["id"] for run in wandb.runs)
    assert first == again != other
    assert {run["resume"] for run in wandb.runs} == {"allow"}
    assert wandb.logged[:3] == [({"loss": 0.5}, 3), ({"validation": (8, 16, 3)}, 3), "finished"]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_missing_wandb_is_reported_with_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"pip install wandb.*--logger tensorboard"):
        open_logger("wandb", tmp_path, {})
