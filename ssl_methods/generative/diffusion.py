"""Diffusion: to find the noise in a picture at any strength of noise, one must know what pictures look like.

Ho, Jain, Abbeel. Denoising Diffusion Probabilistic Models. NeurIPS 2020. https://arxiv.org/abs/2006.11239

    kept_t = product over s <= t of (1 - beta_s)                           beta from 1e-4 to 0.02 in T = 1000 steps
    x_t = sqrt(kept_t) x + sqrt(1 - kept_t) e,  e ~ N(0, 1)                Eq. (4), x: pixels from -1 to 1
    L = || e - d(f(x_t), x_t, t) ||^2 / (number of pixel values)           Eq. (14), t uniform
    x ~ (x_t - sqrt(1 - kept_t) d) / sqrt(kept_t)                          Eq. (15), what the answer says of the picture

Departs from the paper: the U-Net's contracting half is the encoder f, whose maps after each stage go to the expanding
half d, which works on pixels folded 2 x 2 where the first of these maps is smaller than the picture; f is not told the
time t, and there is no attention and no average of the weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Method
from ..modalities import image
from ..parts.heads import shapes_of_maps

STEPS = 1000  # T
TIME = 128  # the width of the embedding of t


def schedule() -> Tensor:
    """kept_t at t = 1..T, (T,): how much of a picture's variance the noise has left."""
    return (1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)).cumprod(0).float()


def diffuse(x: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """Eq. (4). x, noise: (N, 3, H, W), kept: (N, 1, 1, 1)."""
    return kept.sqrt() * x + (1 - kept).sqrt() * noise


def restore(noisy: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """Eq. (15), which undoes Eq. (4). The same shapes."""
    return (noisy - (1 - kept).sqrt() * noise) / kept.sqrt()


def sine_times(t: Tensor) -> Tensor:
    """Fixed sine-cosine embeddings of times (N,), as of positions in a sequence: (N, TIME)."""
    frequency = torch.exp(torch.arange(TIME // 2, device=t.device) * (-math.log(10000.0) / (TIME // 2)))
    angle = t[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Expand(nn.Module):
    """Enlarges a map (N, C, h, w) to the next one's size, joins the two, and adds the time (N, TIME)."""

    def __init__(self, inputs: int, joined: int, outputs: int):
        super().__init__()
        self.time = nn.Linear(TIME, outputs)
        self.conv1 = nn.Conv2d(inputs + joined, outputs, 3, padding=1)
        self.norm1 = nn.GroupNorm(math.gcd(8, outputs), outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(math.gcd(8, outputs), outputs)

    def forward(self, h: Tensor, other: Tensor, time: Tensor) -> Tensor:
        h = torch.cat([F.interpolate(h, size=other.shape[2:]), other], dim=1)
        # Norms are in float32, which autocast leaves to us here: in bfloat16 a CPU takes five times as long for them.
        h = F.silu(self.norm1(self.conv1(h).float()) + self.time(time)[:, :, None, None])
        return F.silu(self.norm2(self.conv2(h).float()))


class Diffusion(Method):
    """Algorithm 1; needs an encoder with `maps(x)`, such as the ResNet."""

    columns = ("image",)

    def __init__(self, encoder: nn.Module, *, size: int):
        super().__init__()
        self.encoder = encoder  # f
        (first, side), *_ = shapes = shapes_of_maps(encoder, size)
        self.fold = 1 if side == size else 2
        widths = [width for width, _ in reversed(shapes)]
        joined, outputs = [*widths[1:], 3 * self.fold**2], [*widths[1:], first]
        self.expand = nn.ModuleList(Expand(*each) for each in zip(widths, joined, outputs, strict=True))
        self.time = nn.Sequential(nn.Linear(TIME, TIME), nn.SiLU(), nn.Linear(TIME, TIME), nn.SiLU())
        self.leave = nn.Conv2d(first, 3 * self.fold**2, 3, padding=1)
        self.register_buffer("kept", schedule(), persistent=False)

    def forward(self, batch):
        x = image.flip(image.unit(batch["image"])) * 2 - 1  # (N, 3, H, W)
        t = torch.randint(STEPS, (len(x),), device=x.device)  # (N,)
        noise = torch.randn_like(x)
        noisy = diffuse(x, noise, self.kept[t, None, None, None])
        return F.mse_loss(self.find_noise(noisy, t).float(), noise), {}

    def find_noise(self, noisy: Tensor, t: Tensor) -> Tensor:
        """d(f(x_t), x_t, t): (N, 3, H, W) and (N,) -> (N, 3, H, W)."""
        *others, h = self.encoder.maps((noisy + 1) / 2)
        time = self.time(sine_times(t))  # (N, TIME)
        folded = F.pixel_unshuffle(noisy, self.fold)  # (N, 3 * fold * fold, H / fold, W / fold)
        for expand, other in zip(self.expand, [*others[::-1], folded], strict=True):
            h = expand(h, other, time)
        return F.pixel_shuffle(self.leave(h), self.fold)

    def draw(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        t = torch.full((len(x),), STEPS // 4, device=x.device)  # when about half of the variance is noise
        kept = self.kept[t, None, None, None]
        noisy = diffuse(x * 2 - 1, torch.randn_like(x), kept)
        found = restore(noisy, self.find_noise(noisy, t).float(), kept)
        return {"input": (noisy + 1) / 2, "output": (found + 1) / 2, "truth": x}
