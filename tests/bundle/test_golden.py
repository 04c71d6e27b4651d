"""Golden images are chosen near and far from the threshold, shrunk to fit, and read back unchanged."""

import dataclasses
import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TINY_SIZE, tiny_image

from stlm_edge.bundle.golden import MAX_IMAGE_PIXELS, GoldenCandidate, decode, encode, fit_golden, select_golden
from stlm_edge.bundle.manifest import MAX_GOLDEN_BYTES
from stlm_edge.errors import JobError, UsageError
from stlm_edge.images import load

THRESHOLD = 0.5


def candidate(name: str, anomalous: bool, score: float, size: int = TINY_SIZE, **image: int) -> GoldenCandidate:
    made = tiny_image(sum(name.encode()), anomalous, **image)
    tensor = load(made, size)
    return GoldenCandidate(name, made, anomalous, tensor, tensor[..., 0] / np.float32(255), score)


def model(tensor: np.ndarray) -> tuple[np.ndarray, float]:
    return tensor[..., 0] / np.float32(255), float(tensor.mean())


@pytest.fixture(scope="module")
def candidates() -> list[GoldenCandidate]:
    normal = [candidate(f"n{i}", False, score) for i, score in enumerate([0.1, 0.2, 0.3, 0.4, 0.45, 0.48, 0.52])]
    anomalous = [candidate(f"a{i}", True, score) for i, score in enumerate([0.3, 0.47, 0.49, 0.51, 0.6, 0.7, 0.9])]
    return normal + anomalous


def test_images_near_and_far_from_the_threshold_of_both_kinds_are_chosen(candidates: list[GoldenCandidate]) -> None:
    chosen = select_golden(candidates, THRESHOLD)
    names = {each.name for each in chosen}
    assert len(chosen) == len(names) == 8
    assert {"a2", "n0", "a3", "a6"} <= names  # below: nearest, farthest; above: nearest, farthest
    assert {"n5", "n6"} & names  # the normal images nearest to the threshold
    assert sum(each.anomalous for each in chosen) >= 3
    assert sum(not each.anomalous for each in chosen) >= 3
    assert [each.score for each in chosen] == sorted(each.score for each in chosen)


def test_choice_does_not_depend_on_the_order(candidates: list[GoldenCandidate]) -> None:
    chosen = [each.name for each in select_golden(candidates, THRESHOLD)]
    for seed in range(5):
        shuffled = random.Random(seed).sample(candidates, len(candidates))
        assert [each.name for each in select_golden(shuffled, THRESHOLD)] == chosen


def test_scores_on_one_side_still_give_eight_of_both_kinds(candidates: list[GoldenCandidate]) -> None:
    low = [dataclasses.replace(each, score=each.score / 10) for each in candidates]
    chosen = select_golden(low, THRESHOLD)
    assert len({each.name for each in chosen}) == 8
    assert {each.anomalous for each in chosen} == {True, False}


def test_too_few_images_or_one_kind_only_is_a_job_error(candidates: list[GoldenCandidate]) -> None:
    with pytest.raises(JobError, match="3 normal and 0 anomalous candidates, expected 8 in all and some of both kinds"):
        select_golden(candidates[:3], THRESHOLD)
    with pytest.raises(JobError, match="14 normal and 0 anomalous"):
        select_golden([dataclasses.replace(each, anomalous=False) for each in candidates], THRESHOLD)


def read_back(folder: Path, chosen: list[GoldenCandidate]) -> None:
    entries, files = encode(chosen)
    (folder / "golden").mkdir()
    for path, content in files.items():
        (folder / path).write_bytes(content)
    for given, entry in zip(chosen, entries, strict=True):
        found = decode(entry, folder, files.__getitem__)
        assert (found.tensor == given.tensor).all()
        assert (load(found.image_path, len(given.tensor)) == given.tensor).all()
        assert (found.map == given.map[found.offset :: found.stride, found.offset :: found.stride]).all()
        assert found.map.dtype == np.float32
        assert (found.score, found.anomalous) == (given.score, given.anomalous)
    assert sum(map(len, files.values())) <= MAX_GOLDEN_BYTES


def test_encoded_images_are_decoded_unchanged(tmp_path: Path, candidates: list[GoldenCandidate]) -> None:
    read_back(tmp_path, select_golden(candidates, THRESHOLD))


@pytest.mark.parametrize(("size", "encoding", "stride"), [(448, "raw", 2), (1024, "png", 4)])
def test_large_sizes_fit_with_sampled_maps(tmp_path: Path, size: int, encoding: str, stride: int) -> None:
    count = 8 if encoding == "raw" else 2
    large = [candidate(f"x{i}", i % 2 == 0, i / 8, size, width=500, height=400) for i in range(count)]
    fitted = fit_golden(large, model)
    read_back(tmp_path, fitted)
    entries, _ = encode(fitted)
    assert {entry.tensor.encoding for entry in entries} == {encoding}
    assert {(entry.map.stride, entry.map.offset) for entry in entries} == {(stride, stride // 2)}
    assert entries[0].map.shape == (len(range(stride // 2, size, stride)),) * 2


def test_outputs_of_a_shrunk_image_are_computed_again() -> None:
    small = candidate("small", False, 0.1)
    large = candidate("large", True, 0.9, width=1300, height=800)
    fitted = fit_golden([small, large], model)
    assert fitted[0] is small
    assert fitted[1].image.width * fitted[1].image.height <= MAX_IMAGE_PIXELS
    assert abs(fitted[1].image.width / fitted[1].image.height - 1.625) < 0.01
    anomaly_map, score = model(fitted[1].tensor)
    assert (fitted[1].map == anomaly_map).all()
    assert fitted[1].score == score


def test_images_that_cannot_fit_are_a_job_error() -> None:
    many = [candidate(f"x{i}", i % 2 == 0, i / 200, 224, width=40, height=40) for i in range(40)]
    with pytest.raises(JobError, match="40 at size 224 do not fit in 8000000 bytes"):
        fit_golden(many, model)


def test_tensor_of_another_image_is_a_value_error(candidates: list[GoldenCandidate]) -> None:
    wrong = dataclasses.replace(candidates[0], tensor=255 - candidates[0].tensor)
    with pytest.raises(ValueError, match="golden image n0: its tensor differs from its resized image"):
        encode([wrong])


def test_names_become_safe_and_distinct() -> None:
    names = ["../../etc/passwd", "../../etc/passwd", "a b\nc", "ü" * 300]
    entries, files = encode([dataclasses.replace(candidate("x", False, 0.1), name=name) for name in names])
    assert [entry.name for entry in entries[:3]] == ["01-..-..-etc-passwd", "02-..-..-etc-passwd", "03-a-b-c"]
    assert all(path.startswith("golden/0") and ".." not in path for path in files)


def test_tensor_png_of_another_size_or_mode_is_refused_before_decoding(tmp_path: Path) -> None:
    entries, _ = encode([candidate("x", False, 0.1)])
    entry = dataclasses.replace(entries[0], tensor=dataclasses.replace(entries[0].tensor, encoding="png"))

    def refusal(content: bytes) -> str:
        with pytest.raises(UsageError) as refused:
            decode(entry, tmp_path, lambda path: content)
        return str(refused.value)

    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    assert "not a readable PNG (Image size (400000000 pixels) exceeds limit" in refusal(buffer.getvalue())
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(buffer, "PNG")
    assert "RGB 5000×5000, expected RGB 64×64" in refusal(buffer.getvalue())
    buffer = io.BytesIO()
    Image.new("L", (TINY_SIZE, TINY_SIZE)).save(buffer, "PNG")
    assert "L 64×64, expected RGB 64×64" in refusal(buffer.getvalue())
    assert "not a readable PNG" in refusal(b"no image")
