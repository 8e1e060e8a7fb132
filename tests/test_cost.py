"""What is counted is what the arithmetic says."""

import pytest
import torch
from test_methods import FACTS, batches, small
from torch import nn

from ssl_methods.encoders import Transformer
from stages.cost import multiply_adds
from stages.pretrain import build_method


class Alone(nn.Module):
    """A network that takes a batch."""

    def __init__(self, network: nn.Module, column: str):
        super().__init__()
        self.network, self.column = network, column

    def forward(self, batch):
        return self.network(batch[self.column])


@pytest.mark.parametrize("rows", [1, 4])
def test_a_convolution_multiplies_once_for_each_place_and_weight(rows):
    batch = {"index": torch.arange(rows), "image": torch.rand(rows, 3, 10, 10)}
    assert multiply_adds(Alone(nn.Conv2d(3, 5, 3), "image"), batch) == 8 * 8 * 5 * 3 * 3 * 3


def test_a_transformer_block_costs_twelve_squares_of_its_width_a_token_and_its_attention():
    width, length = 32, 7
    batch = {"index": torch.arange(2), "token": torch.rand(2, length, width)}
    products = 12 * width**2 * length  # q, k, v, out, and the two layers of the MLP, four times as wide
    assert multiply_adds(Alone(Transformer(width, 1, 4), "token"), batch) == products + 2 * length**2 * width


def test_simclr_sees_every_picture_twice_and_compares_all_views(params, pictures):
    method = build_method(small(params.entry("image", "simclr"), width=24), FACTS, seed=0).eval()
    batch = next(batches(pictures, 1))  # of 8
    encoder = multiply_adds(Alone(method.encoder, "image"), {**batch, "image": batch["image"] / 255})
    projector = method.encoder.dim * (method.encoder.dim + 24)
    assert multiply_adds(method, batch) == 2 * (encoder + projector) + 16 * 16 * 24 / 8
