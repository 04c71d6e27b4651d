"""Checkpoints are read back as written; damaged and incompatible files are refused."""

import json
import pickle
import resource
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_network import SMALL

from stlm_edge.errors import UsageError
from stlm_edge.model import STLM, checkpoint
from stlm_edge.threshold import DecisionThreshold

THRESHOLD = DecisionThreshold(0.5, 0.25, 0.1, 0.9, 0.01, 30, "maximum plus margin", 0.02, "training")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return STLM(SMALL).eval()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model, {"seed": 3}, THRESHOLD)
    return path


def rewritten(path, change):
    """Apply `change` to the header of a file and leave its weights unchanged."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_opened_checkpoint_gives_the_same_outputs(model, saved):
    opened = checkpoint.load(saved)
    image = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(opened.model(image).anomaly_map, model(image).anomaly_map)
    assert opened.decision_threshold == THRESHOLD
    assert opened.provenance == {"seed": 3}


def test_truncated_file_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-1000])
    with pytest.raises(UsageError, match="not a complete safetensors file"):
        checkpoint.load(saved)


def test_pickle_is_never_unpickled(tmp_path):
    path, trace = tmp_path / "model.safetensors", tmp_path / "was_run"

    class Trap:
        def __reduce__(self):
            return open, (str(trace), "w")

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UsageError, match="not a complete safetensors file"):
        checkpoint.load(path)
    torch.save({"model": Trap()}, path)
    with pytest.raises(UsageError, match="not a complete safetensors file"):
        checkpoint.load(path)
    assert not trace.exists()


def test_other_version_is_refused(saved):
    def newer(header):
        header["__metadata__"]["stlm_edge"] = header["__metadata__"]["stlm_edge"].replace(
            '"format_version": 1', '"format_version": 7'
        )

    rewritten(saved, newer)
    with pytest.raises(UsageError, match="checkpoint format 7, this release reads 1"):
        checkpoint.load(saved)


def test_weights_of_other_shape_or_type_are_refused(model, saved):
    tensors = load_file(saved)
    tensors["fa.head.4.bias"] = torch.zeros(2)
    metadata = {checkpoint.KEY: json.dumps(_header(saved))}
    save_file(tensors, saved, metadata)
    with pytest.raises(UsageError, match=r"fa\.head\.4\.bias: found F32 \[2\], expected F32 \[1\]"):
        checkpoint.load(saved)
    tensors["fa.head.4.bias"] = torch.zeros(1, dtype=torch.float16)
    save_file(tensors, saved, metadata)
    with pytest.raises(UsageError, match=r"found F16 \[1\], expected F32 \[1\]"):
        checkpoint.load(saved)
    del tensors["fa.head.4.bias"]
    save_file(tensors, saved, metadata)
    with pytest.raises(UsageError, match=r"found nothing, expected F32 \[1\]"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"size": 100}, "size 100: expected a multiple of 32"),
        ({"size": 10**9}, "size 1000000000: expected .* 4096"),
        ({"depths": [1, 1, 1, 10**9]}, "depths .* expected four integers between 1 and 24"),
        ({"depths": [1, 1, 1]}, "depths .* expected four integers"),
        ({"embed_dims": [16, 32, 32]}, "embed_dims .* expected four integers"),
        ({"embed_dims": [16, 32, 32, 10**9]}, "embed_dims 1000000000: expected a multiple of 16"),
        ({"head_width": 0}, "head_width 0: expected"),
        ({"head_width": 3}, "embed_dims 32: expected a multiple of 3"),
        ({"decoder_dim": 10**9}, "decoder_dim 1000000000: expected a multiple of 16"),
        ({"decoder_mlp_dim": 10**9}, "decoder_mlp_dim 1000000000: expected"),
        ({"fa_dim": "24"}, 'config.fa_dim: found "24", expected an integer'),
        ({"depths": [1, 1, 1, 2]}, "of another network"),
        ({"decoder_dim": 1024}, "of another network"),
    ],
)
def test_invalid_config_is_refused_before_the_model_is_built(saved, config, line):
    header = _header(saved)
    header["config"] |= config
    rewritten(saved, lambda h: h["__metadata__"].update({checkpoint.KEY: json.dumps(header)}))
    with pytest.raises(UsageError, match=line):
        checkpoint.load(saved)


def test_other_safetensors_file_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="safetensors without stlm-edge's metadata"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_full_disk_keeps_the_old_checkpoint(model, saved):
    before = saved.read_bytes()
    script = f"""
import resource
from pathlib import Path
from stlm_edge.model import checkpoint
from stlm_edge.errors import exit_with_one_line
opened = checkpoint.load(Path({str(saved)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, {resource.RLIM_INFINITY}))
with exit_with_one_line():
    checkpoint.save(Path({str(saved)!r}), opened.model, {{}}, opened.decision_threshold)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def _header(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"][checkpoint.KEY])
