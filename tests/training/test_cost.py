"""What is counted is what the arithmetic says."""

import pytest
import torch
from torch import nn

from ssl_methods.encoders.transformers import Transformer
from stages.training.cost import multiply_adds
from stages.training.loop import build_method
from tests.methods.test_methods import FACTS, batches, small


@pytest.mark.parametrize("rows", [1, 4])
def test_a_convolution_multiplies_once_for_each_place_and_weight(rows):
    convolution, x = nn.Conv2d(3, 5, 3), torch.rand(rows, 3, 10, 10)
    assert multiply_adds(lambda: convolution(x), rows) == 8 * 8 * 5 * 3 * 3 * 3


def test_a_transformer_block_costs_twelve_squares_of_its_width_a_token_and_its_attention():
    width, length = 32, 7
    block, x = Transformer(width, 1, 4), torch.rand(2, length, width)
    products = 12 * width**2 * length  # q, k, v, out, and the two layers of the MLP, four times as wide
    assert multiply_adds(lambda: block(x), 2) == products + 2 * length**2 * width


def test_simclr_sees_every_picture_twice_and_compares_all_views(params, pictures):
    method = build_method(small(params.entry("image", "simclr"), width=24), FACTS, seed=0).eval()
    batch = next(batches(pictures, 1))  # of 8
    encoder = multiply_adds(lambda: method.encoder(batch["image"] / 255), 8)
    projector = method.encoder.dim * (method.encoder.dim + 24)
    assert multiply_adds(lambda: method(batch), 8) == 2 * (encoder + projector) + 16 * 16 * 24 / 8


def test_a_gradient_costs_twice_what_its_layer_does():
    layers, x = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), torch.rand(3, 6)
    assert multiply_adds(lambda: layers(x).sum().backward(), 3) == 3 * (6 * 5 + 5 * 4) - 6 * 5  # none for x itself
