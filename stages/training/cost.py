"""What a sample costs in arithmetic: counted, not guessed."""

from collections.abc import Callable
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(work: Callable[[], Any], samples: int) -> int:
    """Those of matrix products, convolutions and attention in one call of `work`, for each of the samples it sees."""
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter passes over the CPU's fused attention
    with plain, FlopCounterMode(display=False) as counter:
        work()
    return round(counter.get_total_flops() / 2 / samples)
