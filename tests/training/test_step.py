"""The training step of the recipe `paper` is the published one; gradients are right; targets are computed once."""

from dataclasses import replace

import numpy as np
import plain_training
import pytest
import torch
from small_network import SMALL

from stlm_edge.model import STLM
from stlm_edge.model.feature_aggregation import FeatureAggregation
from stlm_edge.model.mask_decoder import MaskDecoder
from stlm_edge.model.prompt_encoder import PromptEncoder
from stlm_edge.teachers.sam import Sam
from stlm_edge.training import step
from stlm_edge.training.recipes import RECIPES
from stlm_edge.training.step import (
    CleanTargets,
    TrainingStep,
    cosine_loss,
    dice_loss,
    focal_loss,
    freeze,
    image_targets,
    make_optimisers,
)

SIZE = 64

PAPER = RECIPES["paper"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def a_model(dtype):
    torch.manual_seed(0)
    return STLM(replace(SMALL, size=SIZE)).to(dtype)


def a_teacher(dtype):
    torch.manual_seed(1)
    return Sam("vit_t", STLM(SMALL).plain, digest="", native_size=SIZE, config=SMALL).to(dtype)


def a_batch(count=4):
    """Images, the clean ones and masks; every other image is untouched."""
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    image, mask = clean.copy(), np.zeros((count, SIZE, SIZE), bool)
    for number in range(0, count, 2):
        top, left = rng.integers(0, SIZE // 2, size=2)
        mask[number, top : top + 25, left : left + 27] = True
        mask[number] ^= (np.arange(SIZE) % 9 < 3)[:, None] & (np.arange(SIZE) > 40)
    image[mask] = 255 - image[mask]
    return (torch.from_numpy(array) for array in (image, clean, mask))


def our_step(model, teacher, optimisers, image, clean, mask):
    for optimiser in optimisers:
        optimiser.zero_grad()
    losses = TrainingStep(model, PAPER).train()(image, mask, teacher(clean), teacher(image))
    torch.stack(list(losses.values())).sum().backward()
    for optimiser in optimisers:
        optimiser.step()
    return losses


def both_steps(dtype, steps):
    """The losses of every step and the models after them: ours, and the plainly written one's."""
    image, clean, mask = a_batch()
    ours, plain, teacher = a_model(dtype), a_model(dtype).train(), a_teacher(dtype)
    freeze(ours, PAPER)
    our_optimisers, plain_optimisers = make_optimisers(ours, PAPER), plain_training.optimisers_of(plain)
    losses = []
    for _ in range(steps):
        our_losses = our_step(ours, teacher, our_optimisers, image, clean, mask)
        plain_losses = plain_training.step(plain, teacher, plain_optimisers, image, clean, mask)
        assert our_losses.keys() == plain_losses.keys()
        losses.append([(our_losses[name].item(), plain_losses[name].item()) for name in our_losses])
    return losses, ours, plain


def test_step_has_published_losses_and_weights():
    losses, ours, plain = both_steps(torch.float64, steps=3)
    for our_loss, plain_loss in (pair for of_step in losses for pair in of_step):
        assert our_loss == pytest.approx(plain_loss, abs=1e-6)
    before, after = a_model(torch.float64).state_dict(), plain.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.allclose(tensor, after[name], rtol=0, atol=5e-6), name  # a step moves them by 5e-4
    moved = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    assert len(moved) > 0.9 * len([name for name in after if "final_attn" not in name])


def test_step_in_float32_has_published_losses():
    losses, _, _ = both_steps(torch.float32, steps=1)
    for our_loss, plain_loss in losses[0]:
        assert our_loss == pytest.approx(plain_loss, abs=1e-5)


def test_steps_reduce_losses():
    losses, _, _ = both_steps(torch.float32, steps=8)
    assert sum(first for first, _ in losses[-1]) < sum(first for first, _ in losses[0])


def test_teacher_runs_on_pseudo_anomalous_images_only():
    image, clean, mask = a_batch()
    teacher, counts = a_teacher(torch.float32), []

    def counting(images):
        counts.append(len(images))
        return teacher(images)

    clean_targets = CleanTargets(lambda one: teacher(torch.from_numpy(one)[None]))
    before = clean_targets([one.numpy() for one in clean], torch.device("cpu"))
    targets = image_targets(counting, image, mask, before)
    assert counts == [2]
    for found, expected in zip(targets, teacher(image), strict=True):
        assert (1 - torch.cosine_similarity(found, expected, dim=1)).max() < 1e-5  # clean ones are kept in float16
    untouched = image_targets(counting, clean, torch.zeros_like(mask), before)
    assert counts == [2]
    assert all(torch.equal(found, expected) for found, expected in zip(untouched, before, strict=True))


def double(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)


def test_gradients_of_the_losses():
    maps = [double(2, 5, 3, 3, seed=seed) for seed in range(4)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: cosine_loss((a, b), (c, d)), maps)
    mask = (double(2, 1, 4, 4, seed=5) > 0).double().detach()
    for loss in (focal_loss, dice_loss):
        assert torch.autograd.gradcheck(lambda logits, loss=loss: loss(logits.sigmoid(), mask), [double(2, 1, 4, 4)])


def test_gradients_of_aggregation():
    torch.manual_seed(0)
    fa = FeatureAggregation(in_dim=4, dim=8).double().train()
    wake(fa)
    maps = [double(3, 4, 3, 3, seed=seed) for seed in range(4)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: fa((a, b), (c, d)), maps, fast_mode=True)
    assert parameters_check(fa, lambda network: network(maps[:2], maps[2:]).square().sum())


def test_gradients_of_the_decoder():
    torch.manual_seed(0)
    decoder, prompts = MaskDecoder().double(), PromptEncoder().double()
    embedding, position = double(1, 256, 2, 3), prompts.pe_layer(2, 3)
    no_mask = prompts.no_mask_embed.weight
    assert torch.autograd.gradcheck(lambda x, y: decoder(x, position, y), [embedding, no_mask], fast_mode=True)
    assert parameters_check(decoder, lambda network: network(embedding, position, no_mask).square().sum())


def parameters_check(network, value):
    """Assert that each parameter's gradient agrees with the difference quotient along a random direction."""
    torch.manual_seed(2)
    parameters = [p for name, p in network.named_parameters() if "final_attn" not in name]
    gradients = torch.autograd.grad(value(network), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction, kept, epsilon = torch.randn_like(parameter), parameter.detach().clone(), 1e-5
        direction /= direction.norm()
        ends = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.copy_(kept + sign * epsilon * direction)
                ends.append(value(network).item())
            parameter.copy_(kept)
        quotient, product = (ends[0] - ends[1]) / (2 * epsilon), (gradient * direction).sum().item()
        if not np.isclose(quotient, product, rtol=1e-4, atol=1e-6):
            return False
    return True


def wake(network):
    """Biases away from zero, so that no ReLU stands at its kink."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)


CPU = torch.device("cpu")


class CountingTeacher:
    """A teacher whose maps are the image's first value, and its negative."""

    def __init__(self):
        self.calls = 0

    def __call__(self, image):
        self.calls += 1
        level = torch.full((1, 256, 2, 2), float(image[0, 0, 0]))
        return level, -level


@pytest.fixture
def images():
    return [np.full((32, 32, 3), level, np.uint8) for level in (1, 2, 3)]


def test_clean_targets_are_computed_once(images):
    teacher = CountingTeacher()
    targets = CleanTargets(teacher)
    for _ in range(3):
        first, second = targets(images, CPU)
    assert teacher.calls == 3
    assert first[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert second[:, 0, 0, 0].tolist() == [-1, -2, -3]
    assert first.dtype == torch.float32


def test_clean_targets_beyond_limit_are_computed_again(images, monkeypatch):
    monkeypatch.setattr(step, "CACHED_BYTES", 2 * 2 * 256 * 4)  # one image's two maps
    teacher = CountingTeacher()
    targets = CleanTargets(teacher)
    for _ in range(2):
        first, _ = targets(images, CPU)
    assert teacher.calls == 5
    assert first[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_clean_targets_of_rotated_images_are_not_kept(images):
    teacher = CountingTeacher()
    targets = CleanTargets(teacher, keep=False)
    targets(images, CPU)
    targets(images, CPU)
    assert teacher.calls == 6
