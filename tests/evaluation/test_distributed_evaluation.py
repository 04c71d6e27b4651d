"""Evaluation by two processes: the metrics of one, files written once, one line for an error."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tiny import tiny_image

from stlm_edge.data.datasets import test_samples as samples_of
from stlm_edge.errors import JobError, UsageError
from stlm_edge.evaluation.evaluate import evaluate
from stlm_edge.threshold import DecisionThreshold

SIZE = 160
THRESHOLD = DecisionThreshold(0.5, 0.2, 0.0, 1.0, 0.01, 50, "maximum plus margin", 0.05, "training")
TORCHRUN = Path(sys.executable).parent / "torchrun"


class Varied:
    """A map that follows from the image alone, of more different values than there are levels to rank them."""

    name, size = "varied", SIZE

    def run(self, image):
        grey = image.astype(np.float32).mean(axis=2)
        noise = np.random.default_rng(int(grey.sum())).random((SIZE, SIZE), dtype=np.float32)
        anomaly_map = grey / 255 * 0.5 + noise * 0.2
        return anomaly_map, float(anomaly_map.max())


class Dying(Varied):
    def run(self, image):
        if dist.get_rank() == 1:
            os._exit(9)
        return super().run(image)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """11 normal images and three kinds of defects, of 5, 2 and 1: no number that two processes share evenly."""
    root = tmp_path_factory.mktemp("data")
    for kind, seeds in (("good", range(11)), ("spot", range(20, 25)), ("blot", range(30, 32)), ("dot", range(40, 41))):
        for seed in seeds:
            path = root / "test" / kind / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            tiny_image(seed, defect=kind != "good").save(path)
            if kind != "good":
                mask = np.zeros((90, 120), np.uint8)
                mask[20:70, 10 + seed % 50 : 70 + seed % 50] = 1
                truth = root / "ground_truth" / kind / f"{seed}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth)
    return root


def one_of_two(rank, runtime, data, out):
    """Evaluate as one of two processes; write the result or error beside `out`."""
    dist.init_process_group("gloo", init_method=f"file://{out}.meeting", rank=rank, world_size=2)
    samples = samples_of(data)
    try:
        result = evaluate(runtime, samples, SIZE, THRESHOLD, out, "varied")
    except (UsageError, JobError) as error:
        result = error
    Path(f"{out}.{rank}").write_bytes(pickle.dumps(result))


def by_two(runtime, data, out):
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["stlm_edge.evaluation.evaluate", "tiny"])
    context = torch.multiprocessing.start_processes(
        one_of_two, (runtime, data, out), nprocs=2, join=False, start_method="forkserver"
    )
    for process in context.processes:
        process.join(120)
    return [pickle.loads(path.read_bytes()) for path in sorted(out.parent.glob("out.[01]"))]


def rounded(value):
    """Without the last bits, which the number of threads that add up a curve's area decides."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 12) if isinstance(value, float) else value


def test_two_processes_have_the_metrics_of_one(data, tmp_path):
    alone = evaluate(Varied(), samples_of(data), SIZE, THRESHOLD, tmp_path / "alone", "varied")
    assert 0 < alone["pixel_auroc_error_bound"] < 1e-3  # so the order of counting matters
    both = by_two(Varied(), data, tmp_path / "out")
    assert rounded(both) == rounded([alone, alone])
    assert rounded(json.loads((tmp_path / "out" / "metrics.json").read_text())) == rounded(alone)
    for path in (tmp_path / "alone").glob("*.jpg"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_damaged_image_of_one_process_is_raised_by_both(data, tmp_path):
    broken = tmp_path / "data"
    for path in data.rglob("*.png"):
        copy = broken / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes()[: 60 if path.name == "24.png" else None])
    both = by_two(Varied(), broken, tmp_path / "out")
    assert [type(error) for error in both] == [UsageError, UsageError]
    assert all("24.png: truncated or damaged" in str(error) for error in both)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_dead_process_ends_the_other_with_one_line(data, tmp_path):
    (survivor,) = by_two(Dying(), data, tmp_path / "out")
    assert isinstance(survivor, JobError)
    assert "process 0 of 2 lost the others, one of them died" in str(survivor)
    assert "\n" not in str(survivor)
    assert not (tmp_path / "out").exists()


def under_torchrun(bundle, data, out):
    command = [TORCHRUN, "--standalone", "--nproc-per-node", "2", TORCHRUN.with_name("stlm-eval")]
    command += ["--bundle", bundle, "--data", data, "--out", out, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, env=environment)


@pytest.mark.slow
def test_command_runs_under_torchrun(tiny_bundle, tiny_images, tmp_path):
    done = under_torchrun(tiny_bundle, tiny_images, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "metrics.json").read_text())


@pytest.mark.slow
def test_command_under_torchrun_reports_an_error_once(tiny_bundle, tiny_images, tmp_path):
    shutil.copytree(tiny_images, tmp_path / "data")
    (tmp_path / "data" / "spot" / "304.png").write_bytes(b"")
    done = under_torchrun(tiny_bundle, tmp_path / "data", tmp_path / "out")
    assert done.returncode != 0
    assert (done.stdout, done.stderr.count("error: ")) == ("", 1)
    assert "304.png: the file is empty" in done.stderr
    assert not (tmp_path / "out").exists()
