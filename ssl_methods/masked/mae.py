"""MAE: the encoder sees a quarter of the patches, and a small decoder must paint the rest.

He, Chen, Xie, Li, Dollar, Girshick. Masked Autoencoders Are Scalable Vision Learners. CVPR 2022.
https://arxiv.org/abs/2111.06377

    L = mean over hidden patches of || p - p_hat ||^2 / (values in a patch)             section 3, p: normalised pixels

Departs from the paper: no class token; features are the mean of the tokens.
"""

import torch
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative
from ..encoders.transformers import Transformer, patchify, sine_positions, unpatchify
from ..modalities import image
from ..parts.losses import in_float32, masked_mean


def normalise(patches: Tensor) -> Tensor:
    """Each patch to zero mean and unit variance (section 4.1, "Reconstruction target"): (N, L, P) -> (N, L, P)."""
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


@in_float32
def hidden_error(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """The mean squared error of the hidden patches. predicted, target: (N, L, P); hidden: (N, L), 1 where hidden."""
    error = (predicted - target).square().mean(-1)  # (N, L)
    return masked_mean(error, hidden)


class MAE(Method):
    """Section 3; needs an encoder with `tokens(x, keep)`, such as the ViT."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        mask: Fraction = 0.75,
        width: Count = 512,
        depth: Count = 8,
        heads: Count = 16,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder
        self.visible = max(1, round(encoder.length * (1 - mask)))
        self.enter = nn.Linear(encoder.dim, width)
        self.blank = nn.Parameter(torch.randn(width) * 0.02)  # what stands for a hidden patch
        side = round(encoder.length**0.5)
        self.register_buffer("positions", sine_positions(side, width), persistent=False)
        self.decoder = Transformer(width, depth, heads)
        self.leave = nn.Linear(width, 3 * encoder.patch**2)
        self.strength = strength

    def forward(self, batch):
        x = image.light_view(image.unit(batch["image"]), self.strength)  # (N, 3, H, W)
        predicted, hidden = self.predict(x)
        target = normalise(patchify(x, self.encoder.patch))
        return hidden_error(predicted, target, hidden), {}

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p_hat (N, L, P) of every patch, and which ones were hidden: (N, L), 1 where hidden."""
        places = torch.rand(len(x), self.encoder.length, device=x.device).argsort(1)  # (N, L)
        keep = places[:, : self.visible]  # (N, M)
        seen = self.enter(self.encoder.tokens(x, keep))  # (N, M, W)

        where = keep[:, :, None].expand(-1, -1, len(self.blank))
        h = self.blank.to(seen.dtype).expand(len(x), self.encoder.length, -1).scatter(1, where, seen)
        predicted = self.leave(self.decoder(h + self.positions))
        return predicted, torch.ones_like(places, dtype=torch.float32).scatter(1, keep, 0.0)

    def draw(self, batch):
        """What is hidden is drawn with its own true mean and deviation, for p_hat does not tell them."""
        x = image.unit(batch["image"])  # (N, 3, H, W)
        patches = patchify(x, self.encoder.patch)  # (N, L, P)
        predicted, hidden = self.predict(x)
        variance, mean = torch.var_mean(patches, -1, keepdim=True)
        drawn = torch.lerp(patches, predicted * (variance + 1e-6).sqrt() + mean, hidden[:, :, None])
        seen = patches.lerp(torch.full_like(patches, 0.5), hidden[:, :, None])
        shown = {"input": seen, "output": drawn, "truth": patches}
        return {name: unpatchify(p, self.encoder.patch) for name, p in shown.items()}
