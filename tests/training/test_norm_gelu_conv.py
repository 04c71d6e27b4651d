"""Batch norm, GELU and convolution as one are the three in turn: values, statistics, gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stlm_edge.training.norm_gelu_conv import norm_gelu_conv

CONVOLUTIONS = {
    "1×1": {"kernel_size": 1},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4},
    "stride 2": {"kernel_size": 3, "padding": 1, "stride": 2},
}


def parts(convolution="1×1", momentum=0.1):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.BatchNorm2d(4, momentum=momentum), nn.Conv2d(4, 4, bias=False, **CONVOLUTIONS[convolution])
    )
    with torch.no_grad():
        for parameter in network[0].parameters():
            parameter.uniform_(0.5, 1.5)
    return network.double().train()


@pytest.mark.parametrize("form", ["as it is", "frozen statistics", "cumulative statistics", "channels last"])
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_it_is_one_after_the_other(convolution, form):
    apart = parts(convolution, momentum=None if form.startswith("cumulative") else 0.1)
    apart.train(form != "frozen statistics")
    together = copy.deepcopy(apart)
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64) * 3 + 1
    if form == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for _ in range(2):
        expected, found = apart[1](F.gelu(apart[0](inputs[0]))), norm_gelu_conv(*together, inputs[1])
        assert torch.equal(expected, found)
        weights = torch.randn_like(expected)
        (expected * weights).sum().backward()
        (found * weights).sum().backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, rtol=0, atol=1e-12)
    for one, other in zip(apart.parameters(), together.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=0, atol=1e-11)
    for name, tensor in apart.state_dict().items():
        assert torch.equal(tensor, together.state_dict()[name]), name


def test_gradients():
    network = parts("depthwise")
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: norm_gelu_conv(*network, x), (x, *network.parameters()))


def test_it_keeps_one_map_instead_of_three():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        norm_gelu_conv(*parts(), torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True))
    assert kept.count(2 * 4 * 8 * 8) == 1


def test_under_bfloat16_gradients_come_in_the_weights_own_type():
    network = parts().float()
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm_gelu_conv(*network, x)
    found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    assert all(parameter.grad.dtype == torch.float32 for parameter in network.parameters())
