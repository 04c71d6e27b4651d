"""One training in two processes: the losses of one process, and one line when a process dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stlm_edge.commands.evaluate import evaluate_all
from stlm_edge.training.launcher import supervise

SCRIPT = """
import dataclasses, sys
sys.path.append("TESTS")
from pathlib import Path
from small_network import SMALL
from stlm_edge.training import launcher as processes
from stlm_edge.errors import exit_with_one_line
from stlm_edge.training.job import Job
from stlm_edge.training.recipes import RECIPES
from stlm_edge.training.train import train

data, out, steps, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
recipe = dataclasses.replace(
    RECIPES["quick"], start="random", denoising_target="teacher", plain_lr=1e-4, decoder_lr=1e-4, steps=steps, batch=4,
    bf16=False,
)
with exit_with_one_line("interrupted"):
    if processes.is_supervisor_needed(count):
        raise SystemExit(processes.supervise(count))
    train(Job(data, recipe, 64, save_every=2, network=SMALL), out, resume=True)
""".replace("TESTS", str(Path(__file__).parents[1]))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("normal")
    rng = np.random.default_rng(0)
    for number in range(20):
        wave = 128 + 60 * np.sin(np.arange(64) / 4 + rng.uniform(0, 6))
        Image.fromarray((wave[None, :, None] + rng.normal(0, 8, (64, 64, 3))).clip(0, 255).astype(np.uint8)).save(
            folder / f"{number}.png"
        )
    return folder


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "training.py"
    path.write_text(SCRIPT)
    return path


def started(command, *arguments):
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_two_processes_have_the_losses_of_one(images, script, tmp_path):
    runs = {}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, command, count in (("one", [sys.executable], 1), ("own", [sys.executable], 2), ("torchrun", torchrun, 2)):
        process = started(command, script, images, tmp_path / name, 11, count)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        runs[name] = losses(tmp_path / name)
        assert (tmp_path / name / "checkpoint.safetensors").exists()
    assert len(runs["one"]) == 2  # steps 0 and 10: the second one saw ten synchronised updates
    assert runs["own"] == pytest.approx(runs["one"], abs=1e-5)
    assert runs["torchrun"] == pytest.approx(runs["one"], abs=1e-5)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_job_with_one_line_and_a_run_to_resume(images, script, tmp_path, victim):
    process = started([sys.executable], script, images, tmp_path / "run", 100_000, 2)
    while not (tmp_path / "run" / "state.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    workers = {}
    for worker in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
        workers[environment[[e.startswith(b"RANK=") for e in environment].index(True)]] = int(worker)
    os.kill(workers[b"RANK=%d" % victim], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = [line for line in errors.splitlines() if "error" in line.lower() or "Traceback" in line]
    assert lines == [f"error: process {victim + 1} of 2 was ended by signal 9; start it again with --resume"]
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers.values())
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert (tmp_path / "run" / "state.pt").exists()


def test_what_is_wrong_is_said_once(images, script, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    process = started([sys.executable], script, images, tmp_path / "run", 2, 2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert [line for line in errors.splitlines() if line.startswith("error")] == [
        f"error: {tmp_path / 'run'}: exists and is not a training run; choose another --out"
    ]


def test_under_torchrun_too(images, script, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    _, errors = started(torchrun, script, images, tmp_path / "run", 2, 2).communicate(timeout=120)
    assert errors.count("error: ") == errors.count("exists and is not a training run") == 1


def test_processes_stop_together_when_their_figures_differ(images, script, tmp_path):
    differing = tmp_path / "differing.py"
    differing.write_text(
        "import os, itertools\nfrom stlm_edge.training import validation\n"
        "measured = validation.Validation.measure\nturns = itertools.count(1)\n"
        "def measure(self, model):\n"
        "    figures, sheet = measured(self, model)\n"
        "    better = next(turns) / 100 if os.environ['RANK'] == '1' else 0.5\n"
        "    return figures | {'pixel_auroc': better}, sheet\n"
        "validation.Validation.measure = measure\n"
        + SCRIPT.replace("bf16=False,", "bf16=False, validations=20, fa_lr=1e-3,").replace(
            "save_every=2,", "save_every=2, patience=2,"
        )
    )
    process = started([sys.executable], differing, images, tmp_path / "run", 20, 2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]  # the first process's figures, the same at each
    assert {"cross_entropy", "dice"} <= rows[0].keys()


def test_the_processes_share_the_cores(monkeypatch, tmp_path):
    (tmp_path / "said.py").write_text(
        "import os, sys, pathlib\n"
        "pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(os.environ['OMP_NUM_THREADS'])\n"
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "said.py"), str(tmp_path)])
    assert supervise(2) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == [str(max(1, torch.get_num_threads() // 2))] * 2


def test_a_batch_that_the_processes_cannot_share(images, script, tmp_path):
    process = started([sys.executable], script, images, tmp_path / "run", 2, 3)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: a batch of 4 for 3 processes; start a number that divides it" in errors
    assert not (tmp_path / "run").exists()


def test_every_category_is_trained_and_evaluated_by_two_processes_as_by_one(images, script, tmp_path):
    """What --category all --devices 2 does: the processes go on to the next category together."""
    data = tmp_path / "data"
    for name in ("bolt", "cap"):
        shutil.copytree(images, data / name / "train/good")
        for kind, numbers in (("good", (0, 1)), ("spot", (2, 3))):
            (data / name / "test" / kind).mkdir(parents=True)
            for number in numbers:
                shutil.copy(images / f"{number}.png", data / name / "test" / kind)
    both = tmp_path / "both.py"
    training = SCRIPT.splitlines()[-1].strip()
    assert training.startswith("train(Job(")
    both.write_text(
        SCRIPT.replace(
            training,
            "from stlm_edge.commands.evaluate import evaluate_all\n    from stlm_edge.commands.train import train_all\n"
            f"    train_all({training.removeprefix('train(').removesuffix(', out, resume=True)')}, out)\n"
            "    evaluate_all(out, data, None, out / 'found')",
        )
    )
    for count in (1, 2):
        process = started([sys.executable], both, data, tmp_path / str(count), 3, count)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    for name in ("bolt", "cap"):
        assert losses(tmp_path / "2" / name) == pytest.approx(losses(tmp_path / "1" / name), abs=1e-5)
    found = json.loads((tmp_path / "2/found/metrics.json").read_text())
    assert list(found["categories"]) == ["bolt", "cap"]
    assert found == evaluate_all(tmp_path / "2", data, None, tmp_path / "alone")
