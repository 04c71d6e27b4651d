"""The TFLite converter, run by the real interpreter: the model's numbers, its metadata, the same bytes twice."""

import numpy as np
import pytest
import torch
from small_run import SMALL_SIZE, write_small_run
from tiny import tiny_picture

from stlm_edge import checkpoint, tflite_metadata
from stlm_edge.converters.litert import INT8, to_fp16, to_int8, to_tflite
from stlm_edge.errors import UsageError
from stlm_edge.picture import load
from stlm_edge.runtimes.litert import LiteRT


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return checkpoint.load(write_small_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def fp32(opened, tmp_path_factory):
    path = tmp_path_factory.mktemp("tflite") / "fp32.tflite"
    to_tflite(opened.model.eval(), path, opened.calibration, {"seed": 0})
    return path


@pytest.fixture(scope="module")
def pictures():
    return [load(tiny_picture(seed, defect), SMALL_SIZE) for seed in range(3) for defect in (False, True)]


def differences(path, model, pictures):
    runtime, largest = LiteRT(path, threads=1), 0.0
    for picture in pictures:
        with torch.inference_mode():
            answer = model(torch.from_numpy(picture)[None])
        found, score = runtime.run(picture)
        largest = max(largest, float(np.abs(found - answer.anomaly_map[0, 0].numpy()).max()))
        assert abs(score - answer.score.item()) <= largest + 1e-6
    return largest


def test_fp32_gives_the_models_numbers(opened, fp32, pictures):
    assert differences(fp32, opened.model, pictures) < 1e-4


def test_fp16_and_int8_are_smaller_and_near(opened, fp32, pictures, tmp_path):
    arguments = opened.calibration, SMALL_SIZE, {}
    to_fp16(fp32, tmp_path / "fp16.tflite", *arguments)
    to_int8(fp32, tmp_path / "int8.tflite", *arguments, layers=INT8[1])
    sizes = [path.stat().st_size for path in (fp32, tmp_path / "fp16.tflite", tmp_path / "int8.tflite")]
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[2] < 0.6 * sizes[0]
    assert differences(tmp_path / "fp16.tflite", opened.model, pictures) < 0.1
    assert differences(tmp_path / "int8.tflite", opened.model, pictures) < 0.3


def test_a_lone_file_knows_its_verdict_and_keeps_a_new_threshold(opened, fp32, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(fp32.read_bytes())
    before = tflite_metadata.read_metadata(path)
    assert float(before["stlm_edge.threshold"]) == opened.calibration.threshold
    tflite_metadata.replace_metadata(path, before | {"stlm_edge.threshold": "0.25"})
    assert tflite_metadata.read_metadata(path)["stlm_edge.threshold"] == "0.25"
    picture = load(tiny_picture(0, True), SMALL_SIZE)
    np.testing.assert_array_equal(LiteRT(path, threads=1).run(picture)[0], LiteRT(fp32, threads=1).run(picture)[0])


def test_the_same_model_gives_the_same_bytes(opened, fp32, tmp_path):
    to_tflite(opened.model, tmp_path / "again.tflite", opened.calibration, {"seed": 0})
    assert (tmp_path / "again.tflite").read_bytes() == fp32.read_bytes()


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_a_truncated_file_is_refused(fp32, tmp_path, keep):
    (tmp_path / "cut.tflite").write_bytes(fp32.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"cut\.tflite"):
        tflite_metadata.read_metadata(tmp_path / "cut.tflite")


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "foreign.tflite").write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(UsageError, match=r"foreign\.tflite"):
        tflite_metadata.read_metadata(tmp_path / "foreign.tflite")
