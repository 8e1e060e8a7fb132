"""Super-resolution: from a picture made small, the full one must be drawn.

Ledig et al. Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network. CVPR 2017.
https://arxiv.org/abs/1609.04802, its Eq. (4) alone (SRResNet), without the adversarial and perceptual losses

    L = || x - d(f(x_small)) ||^2 / (number of pixel values)               Eq. (4), encoder f, decoder d

Departs from the paper: a pixel of the small picture is the mean of those it stands for; the small picture is enlarged
again by bicubic interpolation, as in SRCNN (Dong et al. 2014), so that it fits every encoder; the decoder draws from
pooled features.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method, NonNegative
from ..modalities import image
from ..parts.heads import Decoder


def lose_detail(x: Tensor, factor: int) -> Tensor:
    """Pictures (N, 3, H, W) made `factor` times smaller, and as large as before again."""
    height, width = x.shape[2:]
    small = F.adaptive_avg_pool2d(x, (height // factor, width // factor))
    return F.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)


class SuperResolution(Method):
    """Section 2, the generator's part."""

    columns = ("image",)

    def __init__(
        self, encoder: nn.Module, *, size: int, factor: Count = 4, width: Count = 64, strength: NonNegative = 1.0
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.decoder = Decoder(encoder.dim, width, size)  # d
        self.factor, self.strength = factor, strength

    def forward(self, batch):
        x = image.light_view(image.unit(batch["image"]), self.strength)  # (N, 3, H, W)
        drawn = self.decoder(self.encoder(lose_detail(x, self.factor)))
        return F.mse_loss(drawn.float(), x), {}

    def draw(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        small = lose_detail(x, self.factor)
        return {"input": small, "output": self.decoder(self.encoder(small)), "truth": x}
