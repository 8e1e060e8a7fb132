"""Video with sound: the columns `video`, uint8 (N, F, 3, H, W), and `sound`, uint8 (N, T, M), and the views of both.

A row is a second: F frames of it, and its log-mel spectrogram of T ticks and M mels, from silence (0) up. A view takes
and returns floats in [0, 1]. It acts on the whole batch, and every row draws its own parameters.
"""

import torch
from torch import Tensor, nn

from ..encoders.transformers import at
from . import image
from .image import unit

columns = ("video", "sound")
partner_columns = ("label", "clip", "time")


def embed(encoder: nn.Module, batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What evaluation reads: the features (N, D) of each tower at each of its depths, by name. Sound is the first."""
    return encoder.depths(unit(batch["video"]), unit(batch["sound"]))


def features(encoder: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The sound's deepest features (N, D) alone, as fine-tuning needs them."""
    return encoder.sound(unit(batch["sound"]))


def partners(towers: dict[str, dict[str, Tensor]], columns: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What evaluation looks for in what: a sound's film among those of its class, and the reverse.

    And `in step`: a sound's film against the one a second before or after, in seconds that have such a neighbour.
    Features are those of the space that both towers share.
    """
    sound, film, label = towers["sound"]["shared"], towers["video"]["shared"], columns["label"]
    pair = torch.stack([columns["clip"], columns["time"] // 2])  # (2, N)
    _, pair, sizes = pair.unique(dim=1, return_inverse=True, return_counts=True)
    paired = sizes[pair] == 2
    found = {
        "sound to film": {"queries": sound, "gallery": film, "among": label},
        "film to sound": {"queries": film, "gallery": sound, "among": label},
    }
    step = {"queries": sound[paired], "gallery": film[paired], "among": pair[paired]}
    return found | {"in step": step} if paired.any() else found


def views(batch: dict[str, Tensor], strength: float) -> tuple[Tensor, Tensor]:
    """A view of each film and, drawn on its own, one of its sound."""
    return video_view(unit(batch["video"]), strength), sound_view(unit(batch["sound"]), strength)


def video_view(x: Tensor, strength: float = 1.0) -> Tensor:
    """The same box, flip and colours in all frames of a film (N, F, 3, H, W). `strength` as in `image.simclr_view`."""
    frames, channels, height = x.shape[1:4]
    x = image.light_view(x.flatten(1, 2), strength).unflatten(1, (frames, channels))
    tall = x.transpose(1, 2).flatten(2, 3)  # one below the other, (N, 3, F * H, W)
    amount = 0.4 * strength
    tall = image.jitter(tall, amount, amount, amount, hue=amount / 4, p=min(0.8 * strength, 1))
    return tall.unflatten(2, (frames, height)).transpose(1, 2)


def sound_view(x: Tensor, strength: float = 1.0) -> Tensor:
    """A little earlier or later, with a band of mels and a span of ticks hidden, as in SpecAugment. (N, T, M)

    Park et al. 2019, https://arxiv.org/abs/1904.08779, section 2. At `strength` 1 each is up to a quarter of the axis.
    """
    share = min(0.25 * strength, 1)
    x = shifted(x, _span(x, 1, share) * _sign(x))
    for axis in (1, 2):
        x = hidden_span(x, axis, *_place(x, axis, share))
    return x


def shifted(x: Tensor, ticks: Tensor) -> Tensor:
    """Later by `ticks` (N,), whole and possibly negative; what was at the end then lasts. (N, T, M)"""
    place = (torch.arange(x.shape[1], device=x.device) - ticks[:, None]).clamp(0, x.shape[1] - 1)  # (N, T)
    return at(x, place.long())


def hidden_span(x: Tensor, axis: int, start: Tensor, length: Tensor) -> Tensor:
    """`length` places of an axis from `start` on, (N,) each, become the spectrogram's own mean. (N, T, M)"""
    place = torch.arange(x.shape[axis], device=x.device)
    hidden = (place >= start[:, None]) & (place < (start + length)[:, None])  # (N, T) or (N, M)
    return torch.where(hidden.unsqueeze(3 - axis), x.mean((1, 2), keepdim=True), x)


def _span(x: Tensor, axis: int, share: float) -> Tensor:
    """A whole number from 0 to `share` of the axis for each row, (N,)."""
    return (torch.rand(len(x), device=x.device) * (int(share * x.shape[axis]) + 1)).floor()


def _place(x: Tensor, axis: int, share: float) -> tuple[Tensor, Tensor]:
    """Where a span of random length begins, and its length, (N,) each."""
    length = _span(x, axis, share)
    return (torch.rand(len(x), device=x.device) * (x.shape[axis] - length + 1)).floor(), length


def _sign(x: Tensor) -> Tensor:
    return torch.randint(2, (len(x),), device=x.device) * 2 - 1
