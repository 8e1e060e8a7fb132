"""Optimizers and the learning rate's course, against slow references."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from stages.common.settings import Training
from stages.training.optimizers import LARS, optimizer_of, pace

ROOT = Path(__file__).parents[2]


def profile(**changes) -> Training:
    return Training(**{"encoder": "x", "epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 0.1} | changes)


def test_pace_rises_then_falls_as_half_a_cosine():
    assert [pace(p, 0.2) for p in (0, 0.1, 0.2)] == pytest.approx([0, 0.5, 1])
    assert pace(0.6, 0.2) == pytest.approx(0.5)
    assert pace(1.0, 0.2) == pytest.approx(0)
    assert pace(0.5, 0.0) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_only_tensors_of_two_dimensions_decay(name):
    """With no gradient from the data, decay is all that moves a weight."""
    layer = nn.Linear(3, 3)
    nn.init.ones_(layer.bias)
    optimizer = optimizer_of(layer, profile(optimizer=name, weight_decay=0.5))
    before = layer.weight.detach().clone()
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert (layer.weight.abs() < before.abs()).all()
    assert (layer.bias == 1).all()


def test_lars_is_algorithm_1():
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = LARS(groups, lr=0.5, weight_decay=0.1, momentum=0.9, trust=0.02)
    w, b, v, u = weight.detach().clone(), bias.detach().clone(), torch.zeros(4, 3), torch.zeros(4)
    for _ in range(3):
        weight.grad, bias.grad = torch.randn(4, 3), torch.randn(4)
        update = weight.grad + 0.1 * w
        v = 0.9 * v + 0.5 * (0.02 * w.norm() / update.norm()) * update
        u = 0.9 * u + 0.5 * bias.grad
        w, b = w - v, b - u
        optimizer.step()
    torch.testing.assert_close(weight.detach(), w)
    torch.testing.assert_close(bias.detach(), b)


def test_lars_survives_a_weight_of_zeros():
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=0.1, weight_decay=0.0, momentum=0.9).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.1))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_beta1_is_how_much_of_the_last_direction_a_step_keeps(name):
    """Where the gradient is zero the second time, the second step is what is kept of the first."""

    def second_step(beta1: float) -> float:
        layer = nn.Linear(1, 1)
        optimizer = optimizer_of(layer, profile(optimizer=name, beta1=beta1))
        for gradient in (1.0, 0.0):
            before = layer.bias.item()
            layer.weight.grad, layer.bias.grad = torch.zeros(1, 1), torch.full((1,), gradient)
            optimizer.step()
        return before - layer.bias.item()

    assert second_step(0.0) == pytest.approx(0, abs=1e-7)
    assert 0 < second_step(0.5) < second_step(0.9)


STEPS = """
import sys
import torch
from stages.training import devices

if sys.argv[1] == "kept":
    devices.keep_freed_memory()
torch.manual_seed(0)
layers = torch.nn.Sequential(torch.nn.Linear(500, 2000), torch.nn.ReLU(), torch.nn.Linear(2000, 3))
optimizer = torch.optim.AdamW(layers.parameters())
for _ in range(5):
    optimizer.zero_grad()
    layers(torch.randn(512, 500)).square().mean().backward()
    optimizer.step()
print(layers[2].weight.tolist())
"""


def test_memory_that_is_kept_changes_no_number():
    kept, plain = (
        subprocess.run([sys.executable, "-c", STEPS, how], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for how in ("kept", "plain")
    )
    assert kept == plain != ""
