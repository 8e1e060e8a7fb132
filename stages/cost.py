"""What a sample costs in arithmetic: counted, not guessed."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(module: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Of one forward pass, per sample of the batch: those of matrix products, convolutions and attention.

    For a method that is all its networks on all its views. Training takes about three times as many where a gradient
    flows back.
    """
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter passes over the CPU's fused attention
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        module(batch)
    return round(counter.get_total_flops() / 2 / len(batch["index"]))
