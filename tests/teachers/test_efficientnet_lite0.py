"""The proxy teacher: its maps have the shape of SAM's and keep the cosines of its features."""

import pytest
import torch
import torch.nn.functional as F

from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0


@pytest.fixture(scope="module")
def teacher():
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (4, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_maps_have_the_students_grid(teacher, images):
    for features in teacher(images):
        assert features.shape == (4, 256, 6, 6)


def test_weights_are_pretrained(teacher):
    """The first filters are edges, large and nearly balanced around zero, which random ones are not."""
    filters = teacher.backbone.state_dict()["conv_stem.weight"]
    assert filters.std() > 0.1
    assert filters.mean().abs() < 0.1 * filters.std()


def test_embedding_keeps_cosines(teacher, images):
    low, high = teacher._features(images)
    for features, deviation, embedded in zip((low, high), (teacher.std_1, teacher.std_2), teacher(images), strict=True):
        before = features / deviation[:, None, None]
        cosine_before = F.cosine_similarity(before[0], before[1], dim=0)
        assert torch.allclose(cosine_before, F.cosine_similarity(embedded[0], embedded[1], dim=0), atol=1e-5)


def test_fit_gives_unit_deviation_and_keeps_the_mean(images):
    teacher = EfficientNetLite0()
    before = [features.mean((0, 2, 3)) for features in teacher._features(images)]
    teacher.fit([images[:2], images[2:]])
    deviations = (teacher.std_1, teacher.std_2)
    after = [f / s[:, None, None] for f, s in zip(teacher._features(images), deviations, strict=True)]
    for mean, features in zip(before, after, strict=True):
        deviation = features.permute(1, 0, 2, 3).flatten(1).std(dim=1, unbiased=False)
        assert torch.allclose(deviation[deviation > 0.5], torch.ones(1), atol=1e-3)
        assert (features.mean((0, 2, 3)).sign() == mean.sign()).all()


def test_teacher_is_frozen(teacher):
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
