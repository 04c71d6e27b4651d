"""Several processes: one training has the losses of one process, and one line reports a process that dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_network import SMALL

from stlm_edge.commands.evaluate import evaluate_all
from stlm_edge.errors import JobError
from stlm_edge.training.job import Job
from stlm_edge.training.launcher import supervise
from stlm_edge.training.recipes import QUICK
from stlm_edge.training.train import train

RECIPE = replace(
    QUICK, initial_weights="random", denoising_target="teacher", plain_lr=1e-4, length=11, batch=4, bf16=False
)
SCRIPT = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parent)]}
from dataclasses import replace
from pathlib import Path
from stlm_edge.errors import exit_with_one_line
from stlm_edge.training import launcher
from test_launcher import RECIPE, job, train

data, out, steps, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with exit_with_one_line("interrupted"):
    if launcher.is_supervisor_needed(count):
        raise SystemExit(launcher.supervise(count))
    TRAIN
"""
TRAIN = "train(job(data, length=steps), out, resume=True)"


def job(data, **changes):
    return Job(data, replace(RECIPE, **changes), 64, save_every=2, network=SMALL)


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
    path.write_text(SCRIPT.replace("TRAIN", TRAIN))
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


def train_as(rank, data, out, port):
    """Train as one of two processes, with the environment that torchrun sets."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "NODE_RANK": 0}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in (ranks | address).items()})
    torch.set_num_threads(1)
    train(job(data), out)


def test_two_processes_have_the_losses_of_one(images, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    train(job(images), tmp_path / "one")
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["stlm_edge.training.train"])
    arguments = images, tmp_path / "two", port
    torch.multiprocessing.start_processes(train_as, arguments, nprocs=2, start_method="forkserver")
    assert (tmp_path / "two" / "checkpoint.safetensors").exists()
    assert len(losses(tmp_path / "one")) == 2  # steps 0 and 10: the second one saw ten synchronised updates
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [[sys.executable], [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]],
    ids=["supervised", "torchrun"],
)
def test_started_processes_have_the_losses_of_one(images, script, tmp_path, command):
    train(job(images), tmp_path / "one")
    process = started(command, script, images, tmp_path / "two", 11, 2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def supervised(monkeypatch, folder, content):
    """Run a script, which knows its rank, in two supervised processes."""
    (folder / "script.py").write_text(
        f"import os, signal, sys, time\nfrom pathlib import Path\nrank = int(os.environ['RANK'])\n{content}"
    )
    monkeypatch.setattr(sys, "argv", [str(folder / "script.py"), str(folder)])
    return supervise(2)


def test_processes_share_the_cores(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    content = "Path(sys.argv[1], str(rank)).write_text(os.environ['OMP_NUM_THREADS'])"
    assert supervised(monkeypatch, tmp_path, content) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == [str(max(1, torch.get_num_threads() // 2))] * 2


@pytest.mark.parametrize("victim", [0, 1])
def test_dead_process_ends_the_other_and_is_reported(monkeypatch, tmp_path, victim):
    content = f"""
own = Path(sys.argv[1], f"{{rank}}.tmp")
own.write_text(str(os.getpid()))
own.rename(own.with_suffix(".pid"))
while rank == {victim} and not Path(sys.argv[1], "{1 - victim}.pid").exists():
    time.sleep(0.01)
if rank == {victim}:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    monkeypatch.setattr("stlm_edge.training.launcher._GRACE_SECONDS", 0.1)
    with pytest.raises(JobError, match=f"process {victim + 1} of 2 was ended by signal 9; .*--resume"):
        supervised(monkeypatch, tmp_path, content)
    assert not any(Path("/proc", path.read_text()).exists() for path in tmp_path.glob("*.pid"))


def test_common_error_is_printed_once(monkeypatch, tmp_path, capfd):
    content = "print('error: exists', file=sys.stderr)\nsys.exit(2)"
    assert supervised(monkeypatch, tmp_path, content) == 2
    assert capfd.readouterr().err == "error: exists\n"


def test_error_of_the_second_process_alone_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr("stlm_edge.training.launcher._GRACE_SECONDS", 0.1)
    content = "if rank:\n    print('error: 3.png: truncated', file=sys.stderr)\n    sys.exit(2)\ntime.sleep(60)"
    with pytest.raises(JobError, match=r"^3\.png: truncated$"):
        supervised(monkeypatch, tmp_path, content)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_process_ends_the_training_with_one_line_and_a_run_to_resume(images, script, tmp_path, victim):
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [[sys.executable], [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]],
    ids=["supervised", "torchrun"],
)
def test_unusable_run_folder_is_reported_once(images, script, tmp_path, command):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    process = started(command, script, images, tmp_path / "run", 2, 2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode
    assert errors.count("error: ") == errors.count("is not a training run") == 1


@pytest.mark.slow
def test_processes_stop_together_when_their_metrics_differ(images, tmp_path):
    differing = tmp_path / "differing.py"
    differing.write_text(
        "import os, itertools\nfrom stlm_edge.training import validation\n"
        "measured = validation.Validation.measure\nturns = itertools.count(1)\n"
        "def measure(self, model):\n"
        "    metrics, sheet = measured(self, model)\n"
        "    better = next(turns) / 100 if os.environ['RANK'] == '1' else 0.5\n"
        "    return metrics | {'pixel_auroc': better}, sheet\n"
        "validation.Validation.measure = measure\n"
        "from stlm_edge.training.recipes import Aggregation\n"
        + SCRIPT.replace(
            "TRAIN",
            "patient = job(data, length=steps, validations=20, aggregation=Aggregation(1e-3))\n"
            "    train(replace(patient, patience=2), out)",
        )
    )
    process = started([sys.executable], differing, images, tmp_path / "run", 20, 2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]  # the first process's metrics, the same at each
    assert {"cross_entropy", "dice"} <= rows[0].keys()


@pytest.mark.slow
def test_batch_that_the_processes_cannot_share_is_refused(images, script, tmp_path):
    process = started([sys.executable], script, images, tmp_path / "run", 2, 3)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: a batch of 4 for 3 processes" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_and_evaluate_every_category_as_one(images, tmp_path):
    """--category all --devices 2: the processes go on to the next category together."""
    data = tmp_path / "data"
    for name in ("bolt", "cap"):
        shutil.copytree(images, data / name / "train/good")
        for kind, numbers in (("good", (0, 1)), ("spot", (2, 3))):
            (data / name / "test" / kind).mkdir(parents=True)
            for number in numbers:
                shutil.copy(images / f"{number}.png", data / name / "test" / kind)
    both = tmp_path / "both.py"
    both.write_text(
        SCRIPT.replace(
            "TRAIN",
            "from stlm_edge.commands.evaluate import evaluate_all\n    from stlm_edge.commands.train import train_all\n"
            "    train_all(job(data, length=steps), out)\n"
            "    evaluate_all(out, data, None, out / 'metrics')",
        )
    )
    for count in (1, 2):
        process = started([sys.executable], both, data, tmp_path / str(count), 3, count)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    for name in ("bolt", "cap"):
        assert losses(tmp_path / "2" / name) == pytest.approx(losses(tmp_path / "1" / name), abs=1e-5)
    metrics = json.loads((tmp_path / "2/metrics/metrics.json").read_text())
    assert list(metrics["categories"]) == ["bolt", "cap"]
    assert metrics == evaluate_all(tmp_path / "2", data, None, tmp_path / "alone")
