"""The teacher's maps are computed once, whatever happens to the folder of the cache."""

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


class CountingTeacher(torch.nn.Module):
    """A teacher of two convolutions that counts its images."""

    name, digest, channels = "counting", "0" * 64, 256

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolutions = torch.nn.ModuleList(torch.nn.Conv2d(3, 256, 16, 16) for _ in range(2))
        self.register_buffer("deviation", torch.ones(1))
        self.images = 0

    @torch.no_grad()
    def forward(self, image):
        self.images += len(image)
        x = image.permute(0, 3, 1, 2).float() / 255 / self.deviation
        return tuple(convolution(x) for convolution in self.convolutions)


@pytest.fixture
def teacher():
    return CountingTeacher()


def random_image(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def entries(folder):
    return sorted((folder / f"features-{FORMAT_VERSION}").glob("*"))


def test_maps_are_float16_and_computed_once(teacher, tmp_path):
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
    assert teacher.images == 2
    assert [path.stat().st_size for path in entries(tmp_path)] == [ENTRY_BYTES]


def test_rotated_and_changed_images_have_other_entries(teacher, tmp_path):
    cache, image = FeatureCache(teacher, tmp_path), random_image(0)
    other = image.copy()
    other[3, 4, 1] ^= 1
    for variant in (image, np.rot90(image), other, np.ascontiguousarray(np.rot90(image))):
        expected = tuple(m.half() for m in teacher(torch.from_numpy(variant.copy())[None]))
        assert same(cache(variant), expected)
    assert len(entries(tmp_path)) == 3


def test_other_size_and_other_deviations_have_other_entries(teacher, tmp_path):
    before = FeatureCache(teacher, tmp_path)(random_image(0))
    assert FeatureCache(teacher, tmp_path)(random_image(0, 96))[0].shape == (1, 256, 6, 6)
    unfitted = fingerprint(teacher)
    teacher.deviation.fill_(2)
    assert fingerprint(teacher) != unfitted
    assert not same(FeatureCache(teacher, tmp_path)(random_image(0)), before)
    assert len(entries(tmp_path)) == 3


def test_autocast_changes_nothing(teacher, tmp_path):
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
def test_damaged_entry_is_replaced(teacher, tmp_path, damage):
    cache = FeatureCache(teacher, tmp_path)
    expected = cache(random_image(0))
    (entry,) = entries(tmp_path)
    content = entry.read_bytes()
    entry.write_bytes(DAMAGES[damage](content))
    assert same(cache(random_image(0)), expected)
    assert entry.read_bytes() == content


def test_entry_with_another_name_is_not_trusted(teacher, tmp_path):
    cache = FeatureCache(teacher, tmp_path)
    cache(random_image(0))
    (entry,) = entries(tmp_path)
    content = entry.read_bytes()
    cache(random_image(1))
    (other,) = set(entries(tmp_path)) - {entry}
    other.write_bytes(content)
    expected = tuple(m.half() for m in teacher(torch.from_numpy(random_image(1))[None]))
    assert same(cache(random_image(1)), expected)


def test_least_recently_used_entries_are_removed(teacher, tmp_path):
    cache = FeatureCache(teacher, tmp_path, limit_bytes=10 * ENTRY_BYTES)
    for seed in range(30):
        cache(random_image(seed))
        cache(random_image(0))
        assert sum(path.stat().st_size for path in entries(tmp_path)) <= 11 * ENTRY_BYTES
        time.sleep(0.002)
    assert teacher.images == 30


def test_other_files_are_left_alone(teacher, tmp_path):
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


def test_stale_temporary_files_are_removed(teacher, tmp_path):
    folder = tmp_path / f"features-{FORMAT_VERSION}"
    folder.mkdir()
    (folder / "old.part").write_bytes(b"x")
    (folder / "being-written.part").write_bytes(b"x")
    os.utime(folder / "old.part", (time.time() - 7200,) * 2)
    FeatureCache(teacher, tmp_path)(random_image(0))
    assert [path.name for path in folder.glob("*.part")] == ["being-written.part"]


def test_full_disk_is_one_warning(teacher, tmp_path, capfd):
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
    assert "without the feature cache" in warning
    assert len(entries(tmp_path)) == 1
    assert all(same(answers[seed], FeatureCache(teacher, tmp_path)(random_image(seed))) for seed in range(4))


def test_impossible_folder_is_one_warning(teacher, tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(teacher, tmp_path / "file")
    assert cache(random_image(0))[0].shape == cache(random_image(1))[0].shape
    assert capfd.readouterr().err.count("\n") == 1


def fill_cache(folder: Path, seeds: list[int]) -> None:
    torch.set_num_threads(1)
    cache = FeatureCache(CountingTeacher(), folder, limit_bytes=15 * ENTRY_BYTES)
    for seed in seeds:
        cache(random_image(seed))


def test_processes_share_a_folder(teacher, tmp_path):
    context = multiprocessing.get_context("fork")
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


def test_reading_is_cheaper_than_the_proxy_teacher(tmp_path):
    teacher = EfficientNetLite0()
    cache, seconds = FeatureCache(teacher, tmp_path), {"teacher": [], "cache": []}
    for seed in range(8):
        image = random_image(seed, 224)
        cache(image)
        for name, ask in (("teacher", lambda image: teacher(torch.from_numpy(image)[None])), ("cache", cache)):
            begin = time.process_time()
            ask(image)
            seconds[name].append(time.process_time() - begin)
    assert min(seconds["cache"]) < 0.5 * min(seconds["teacher"])
