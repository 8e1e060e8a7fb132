"""The convolutions of encoders, against torch's and against sums written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_methods import encoders
from ssl_methods.encoders import Conv

# Inputs, outputs, side of the map, kernel, stride; at least as many inputs as places in the map that comes out.
SHAPES = [
    (64, 64, 4, 3, 1),
    (32, 64, 8, 3, 2),
    (32, 64, 8, 1, 2),
    (64, 32, 8, 3, 1),
    (64, 64, 7, 3, 2),
    (9, 8, 3, 5, 1),
]


@pytest.fixture(autouse=True)
def amx(monkeypatch):
    """The arithmetic is one that any CPU can do; whether it is the quicker one is not asked here."""
    monkeypatch.setattr(encoders, "AMX", True)


def gradients(conv: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Of the pictures and of the weights, trained in bfloat16."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        conv(x).backward(gradient)
    return x.grad, conv.weight.grad


def drawn(inputs: int, outputs: int, side: int, kernel: int, stride: int, dtype: torch.dtype) -> tuple[Conv, Tensor]:
    torch.manual_seed(0)
    conv = Conv(inputs, outputs, kernel, stride).to(memory_format=torch.channels_last)
    return conv, torch.randn(5, inputs, side, side).to(dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_of_small_maps_are_the_sums_over_what_each_weight_saw(shape):
    """dL / dw[o, c, i, j] = sum over n, y, z of g[n, o, y, z] * x[n, c, y s + i, z s + j], and x likewise."""
    *_, kernel, stride = shape
    conv, x = drawn(*shape, torch.bfloat16)
    gradient = torch.randn_like(conv(x.float())).bfloat16()
    of_x, of_weight = gradients(conv, x, gradient)
    assert (of_x.dtype, of_weight.dtype) == (torch.bfloat16, torch.float32)

    seen, g, weight = F.pad(x.double(), [kernel // 2] * 4), gradient.double(), conv.weight.detach().bfloat16().double()
    expected_x, expected_weight = torch.zeros_like(seen), torch.zeros_like(weight)
    height, width = g.shape[2:]
    for i in range(kernel):
        for j in range(kernel):
            rows, columns = slice(i, i + stride * height, stride), slice(j, j + stride * width, stride)
            expected_weight[:, :, i, j] = torch.einsum("noyz,ncyz->oc", g, seen[:, :, rows, columns])
            expected_x[:, :, rows, columns] += torch.einsum("noyz,oc->ncyz", g, weight[:, :, i, j])
    expected_x = expected_x[:, :, kernel // 2 :, kernel // 2 :][:, :, : x.shape[2], : x.shape[3]]
    for found, expected in ((of_x, expected_x), (of_weight, expected_weight)):
        assert (found - expected).norm() < 2**-7 * expected.norm()  # bfloat16 keeps eight binary digits


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_it_is_torchs_convolution_to_the_last_digit(shape):
    conv, x = drawn(*shape, torch.float32)
    inputs, outputs, _, kernel, stride = shape
    torchs = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False).to(memory_format=torch.channels_last)
    torchs.load_state_dict(conv.state_dict())
    for one in (conv, torchs):
        one(x).square().mean().backward()
    assert conv(x).equal(torchs(x))
    assert conv.weight.grad.equal(torchs.weight.grad)


@pytest.mark.parametrize(("side", "amx", "own"), [(8, True, True), (9, True, False), (8, False, False)])
def test_large_maps_and_other_cpus_are_left_to_torch(monkeypatch, side, amx, own):
    """64 inputs: as many as there are places in the smaller map, fewer than in the larger."""
    monkeypatch.setattr(encoders, "AMX", amx)
    conv, x = drawn(64, 8, side, 3, 1, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert (type(conv(x).grad_fn).__name__ == "SmallMapsBackward") is own
