"""The teacher's answers are computed once, whatever happens to the folder that keeps them."""

import multiprocessing
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.training.feature_cache import FORMAT_VERSION, FeatureCache, fingerprint

SIZE = 64
ENTRY_BYTES = 32 + 2 * 256 * (SIZE // 16) ** 2 * 2


class Counted(EfficientNetLite0):
    """The stand-in, which counts the images that it was asked about."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, image):
        self.asked += len(image)
        return super().forward(image)


@pytest.fixture
def teacher():
    return Counted()


def random_image(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def entries(folder):
    return sorted((folder / f"features-{FORMAT_VERSION}").glob("*"))


def test_an_answer_is_the_teachers_in_float16_and_computed_once(teacher, tmp_path):
    cache = FeatureCache(teacher, tmp_path)
    expected = tuple(m.half() for m in teacher(torch.from_numpy(random_image(0))[None]))
    first, again, in_another_run = (
        cache(random_image(0)),
        cache(random_image(0)),
        FeatureCache(teacher, tmp_path)(random_image(0)),
    )
    assert first[0].shape == first[1].shape == (1, 256, SIZE // 16, SIZE // 16)
    assert same(first, expected)
    assert same(again, expected)
    assert same(in_another_run, expected)
    assert teacher.asked == 2
    assert [path.stat().st_size for path in entries(tmp_path)] == [ENTRY_BYTES]


def test_a_turned_image_and_one_that_differs_by_one_value_are_others(teacher, tmp_path):
    cache, image = FeatureCache(teacher, tmp_path), random_image(0)
    other = image.copy()
    other[3, 4, 1] ^= 1
    for variant in (image, np.rot90(image), other, np.ascontiguousarray(np.rot90(image))):
        expected = tuple(m.half() for m in teacher(torch.from_numpy(variant.copy())[None]))
        assert same(cache(variant), expected)
    assert len(entries(tmp_path)) == 3


def test_another_size_and_other_fitted_deviations_are_computed_anew(teacher, tmp_path):
    before = FeatureCache(teacher, tmp_path)(random_image(0))
    assert FeatureCache(teacher, tmp_path)(random_image(0, 96))[0].shape == (1, 256, 6, 6)
    unfitted = fingerprint(teacher)
    teacher.fit([torch.from_numpy(np.stack([random_image(1), random_image(2)]))])
    assert fingerprint(teacher) != unfitted
    assert not same(FeatureCache(teacher, tmp_path)(random_image(0)), before)
    assert len(entries(tmp_path)) == 3


def test_mixed_precision_around_it_changes_nothing(teacher, tmp_path):
    with torch.autocast("cpu", torch.bfloat16):
        inside = FeatureCache(teacher, tmp_path / "a")(random_image(0))
    assert same(inside, FeatureCache(teacher, tmp_path / "b")(random_image(0)))


def flip(content):
    return content[:-7] + bytes([content[-7] ^ 1]) + content[-6:]


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-100],
    "longer": lambda content: content + b"x",
    "a bit flipped": flip,
    "values lost in a power cut": lambda content: content[:32] + bytes(len(content) - 32),
    "foreign": lambda content: os.urandom(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_computed_anew_and_replaced(teacher, tmp_path, damage):
    cache = FeatureCache(teacher, tmp_path)
    expected = cache(random_image(0))
    (entry,) = entries(tmp_path)
    content = entry.read_bytes()
    entry.write_bytes(DAMAGES[damage](content))
    assert same(cache(random_image(0)), expected)
    assert entry.read_bytes() == content


def test_an_entry_under_anothers_name_is_not_trusted(teacher, tmp_path):
    cache = FeatureCache(teacher, tmp_path)
    cache(random_image(0))
    (entry,) = entries(tmp_path)
    content = entry.read_bytes()
    cache(random_image(1))
    (other,) = set(entries(tmp_path)) - {entry}
    other.write_bytes(content)
    expected = tuple(m.half() for m in teacher(torch.from_numpy(random_image(1))[None]))
    assert same(cache(random_image(1)), expected)


def test_it_stays_within_its_limit_and_keeps_what_was_used_last(teacher, tmp_path):
    cache = FeatureCache(teacher, tmp_path, limit_bytes=10 * ENTRY_BYTES)
    for seed in range(30):
        cache(random_image(seed))
        cache(random_image(0))
        assert sum(path.stat().st_size for path in entries(tmp_path)) <= 11 * ENTRY_BYTES
        time.sleep(0.002)
    assert teacher.asked == 30


def test_what_it_did_not_write_is_left_alone(teacher, tmp_path):
    own, other = tmp_path / f"features-{FORMAT_VERSION}", tmp_path / f"features-{FORMAT_VERSION + 1}"
    for folder in (own, other):
        folder.mkdir()
        (folder / "notes.txt").write_bytes(bytes(100 * ENTRY_BYTES))
    (other / ("0" * 64 + ".maps")).write_bytes(b"of a later version")
    cache = FeatureCache(teacher, tmp_path, limit_bytes=2 * ENTRY_BYTES)
    for seed in range(6):
        cache(random_image(seed))
    assert (own / "notes.txt").exists()
    assert sorted(path.name for path in other.iterdir()) == ["0" * 64 + ".maps", "notes.txt"]


def test_what_a_killed_process_left_is_removed_after_a_while(teacher, tmp_path):
    folder = tmp_path / f"features-{FORMAT_VERSION}"
    folder.mkdir()
    (folder / "old.part").write_bytes(b"x")
    (folder / "being-written.part").write_bytes(b"x")
    os.utime(folder / "old.part", (time.time() - 7200,) * 2)
    FeatureCache(teacher, tmp_path)(random_image(0))
    assert [path.name for path in folder.glob("*.part")] == ["being-written.part"]


def test_a_full_disk_costs_one_line_and_no_answer(teacher, tmp_path, capfd):
    """A limit on the size of files stands for the full disk."""
    cache = FeatureCache(teacher, tmp_path)
    cache(random_image(0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ENTRY_BYTES // 2, before[1]))
    try:
        answers = [cache(random_image(seed)) for seed in range(4)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1
    assert warning.startswith(f"warning: {tmp_path}")
    assert "without keeping" in warning
    assert len(entries(tmp_path)) == 1
    assert all(same(answers[seed], FeatureCache(teacher, tmp_path)(random_image(seed))) for seed in range(4))


def test_a_folder_that_cannot_be_made_costs_one_line(teacher, tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(teacher, tmp_path / "file")
    assert cache(random_image(0))[0].shape == cache(random_image(1))[0].shape
    assert capfd.readouterr().err.count("\n") == 1


def fill_cache(folder: Path, seeds: list[int]) -> None:
    torch.set_num_threads(1)
    cache = FeatureCache(EfficientNetLite0(), folder, limit_bytes=15 * ENTRY_BYTES)
    for seed in seeds:
        cache(random_image(seed))


def test_processes_share_a_folder(teacher, tmp_path):
    context = multiprocessing.get_context("spawn")
    orders = [list(range(20)), list(range(20))]
    processes = [context.Process(target=fill_cache, args=(tmp_path, order)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert all(path.suffix == ".maps" and path.stat().st_size == ENTRY_BYTES for path in entries(tmp_path))
    assert len(entries(tmp_path)) <= 17
    fresh = FeatureCache(teacher, tmp_path / "fresh")
    cache = FeatureCache(teacher, tmp_path)
    for seed in range(20):
        for found, expected in zip(cache(random_image(seed)), fresh(random_image(seed)), strict=True):
            assert torch.allclose(found.float(), expected.float(), atol=1e-2)


def test_reading_is_much_cheaper_than_the_cheapest_teacher(teacher, tmp_path):
    cache, seconds = FeatureCache(teacher, tmp_path), {"teacher": [], "cache": []}
    for seed in range(8):
        image = random_image(seed, 224)
        cache(image)
        for name, ask in (("teacher", lambda image: teacher(torch.from_numpy(image)[None])), ("cache", cache)):
            begin = time.process_time()
            ask(image)
            seconds[name].append(time.process_time() - begin)
    assert min(seconds["cache"]) < 0.5 * min(seconds["teacher"])
