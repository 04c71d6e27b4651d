"""A training step of the recipe `paper` is the published one; its gradients are right."""

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
from stlm_edge.training.clean_targets import CleanTargets, seen_targets
from stlm_edge.training.losses import cosine_loss, dice_loss, focal_loss, l1_loss
from stlm_edge.training.recipes import RECIPES
from stlm_edge.training.step import TwoStreams, freeze, make_optimisers

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
    losses = TwoStreams(model, PAPER).train()(image, mask, teacher(clean), teacher(image))
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


def test_a_step_gives_the_published_losses_and_weights():
    losses, ours, plain = both_steps(torch.float64, steps=3)
    for our_loss, plain_loss in (pair for step in losses for pair in step):
        assert our_loss == pytest.approx(plain_loss, abs=1e-6)
    before, after = a_model(torch.float64).state_dict(), plain.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.allclose(tensor, after[name], rtol=0, atol=5e-6), name  # a step moves them by 5e-4
    moved = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    assert len(moved) > 0.9 * len([name for name in after if "final_attn" not in name])


def test_in_float32_the_losses_are_the_published_ones_too():
    losses, _, _ = both_steps(torch.float32, steps=1)
    for our_loss, plain_loss in losses[0]:
        assert our_loss == pytest.approx(plain_loss, abs=1e-5)


def test_steps_make_the_losses_fall():
    losses, _, _ = both_steps(torch.float32, steps=8)
    assert sum(first for first, _ in losses[-1]) < sum(first for first, _ in losses[0])


def test_the_teacher_is_asked_only_about_changed_images():
    image, clean, mask = a_batch()
    teacher, asked = a_teacher(torch.float32), []

    def answer(images):
        asked.append(len(images))
        return teacher(images)

    known = CleanTargets(lambda one: teacher(torch.from_numpy(one)[None]))
    before = known([one.numpy() for one in clean], torch.device("cpu"))
    seen = seen_targets(answer, image, mask, before)
    assert asked == [2]
    for found, expected in zip(seen, teacher(image), strict=True):
        assert (1 - torch.cosine_similarity(found, expected, dim=1)).max() < 1e-6
    untouched = seen_targets(answer, clean, torch.zeros_like(mask), before)
    assert asked == [2]
    assert all(torch.equal(found, expected) for found, expected in zip(untouched, before, strict=True))


def double(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)


def test_gradients_of_the_losses():
    maps = [double(2, 5, 3, 3, seed=seed) for seed in range(4)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: cosine_loss((a, b), (c, d)), maps)
    mask = (double(2, 1, 4, 4, seed=5) > 0).double().detach()
    for loss in (focal_loss, l1_loss, dice_loss):
        assert torch.autograd.gradcheck(lambda logits, loss=loss: loss(logits.sigmoid(), mask), [double(2, 1, 4, 4)])


def test_gradients_of_feature_aggregation():
    torch.manual_seed(0)
    fa = FeatureAggregation(dim=4).double().train()
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
    """Whether each parameter's gradient agrees with the difference quotient along a random direction."""
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
