"""Dead units: features that are the same whatever the input, as after a ReLU that never opens. It needs no label."""

from torch import Tensor

from . import varying


def dead(features: Tensor) -> float:
    """The share of the columns of features (N, D) that do not vary by more than rounding, in percent."""
    return 100 * (~varying(features)).double().mean().item()
