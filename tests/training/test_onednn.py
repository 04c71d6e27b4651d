"""Products by oneDNN: the numbers and gradients of the ordinary ones, in the memory of the ordinary ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stlm_edge.model.tiny_vit import TinyViT
from stlm_edge.training.norm_gelu_conv import norm_gelu_conv, save_memory
from stlm_edge.training.onednn import ByOneDNN


def values_and_gradients(layer, x):
    x = x.detach().clone().requires_grad_(True)
    y = layer(x)
    gradients = torch.autograd.grad(y.square().sum() + y.sum(), [x, *layer.parameters()])
    return y, gradients


@pytest.fixture
def mapped():
    torch.manual_seed(0)
    return torch.randn(2, 24, 16, 20).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 16, 16, 24), (6, 49, 24), (512, 24)])
def test_a_linear_layer(shape):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40), torch.randn(shape)
    plain, plain_gradients = values_and_gradients(layer, x)
    with ByOneDNN():
        fast, fast_gradients = values_and_gradients(layer, x)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    for found, expected in zip(fast_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution(mapped, kernel, stride):
    layer = nn.Conv2d(24, 40, kernel, stride, kernel // 2)
    plain, plain_gradients = values_and_gradients(layer, mapped)
    with ByOneDNN():
        fast, fast_gradients = values_and_gradients(layer, mapped)
    assert fast.shape == plain.shape
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    for found, expected in zip(fast_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_norm_gelu_and_convolution(mapped):
    found = []
    for context in (torch.enable_grad(), ByOneDNN()):
        torch.manual_seed(0)
        norm, conv = nn.BatchNorm2d(24), nn.Conv2d(24, 40, 1, bias=False)
        x = mapped.clone().requires_grad_(True)
        with context:
            y = norm_gelu_conv(norm, conv, x)
            gradients = torch.autograd.grad(y.square().sum(), [x, norm.weight, norm.bias, conv.weight])
        found.append((y, norm.running_mean, norm.running_var, *gradients))
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


class Operations(TorchDispatchMode):
    """Records the products that run, and each copy of a tensor as large as the map."""

    def __init__(self):
        super().__init__()
        self.names, self.copied = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        y = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default):
            self.copied += y.numel()
        return y


def operations(network, x, context):
    seen = Operations()
    with seen, context:
        network(x).square().sum().backward()
    network.zero_grad()
    return seen


def test_an_encoders_products_are_convolutions_and_nothing_more_is_copied():
    torch.manual_seed(0)
    encoder = TinyViT((1, 1, 1, 1)).train().to(memory_format=torch.channels_last)
    save_memory(encoder)
    x = torch.randn(2, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    plain, fast = operations(encoder, x, torch.enable_grad()), operations(encoder, x, ByOneDNN())
    assert "addmm" in plain.names
    assert not {"addmm", "mm"} & set(fast.names)
    assert fast.copied <= plain.copied


def test_doubles_and_half_precision_keep_their_products():
    layer = nn.Linear(24, 40).double()
    x = torch.randn(512, 24, dtype=torch.float64)
    with ByOneDNN():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            fast = layer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x.float()), fast)


def test_outside_of_it_nothing_is_changed(mapped):
    layer = nn.Conv2d(24, 40, 1)
    with pytest.raises(RuntimeError, match="stop"), ByOneDNN():
        raise RuntimeError("stop")
    seen = Operations()
    with seen:
        layer(mapped)
    assert "view" not in seen.names
