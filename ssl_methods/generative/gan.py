"""BiGAN: an encoder finds codes for pictures, a generator pictures for codes, and no judge shall tell the pairs apart.

Donahue, Kraehenbuehl, Darrell. Adversarial Feature Learning. ICLR 2017. https://arxiv.org/abs/1605.09782
The same game as ALI, Dumoulin et al., ICLR 2017, https://arxiv.org/abs/1606.00704

    V = E log D(x, E(x)) + E log(1 - D(G(z), z))                           Eq. (3), x: data, z: uniform on [-1, 1]
    min over G, E  max over D  of V                                        Eq. (2)

D descends on -V. G and E descend on the same with the labels swapped, which pushes them the same way and harder
(section 3.4). The loss is the sum: in one part D learns from pairs that stand still, in the other G and E from a D that
stands still, so that one backward pass moves all three, each by its own gradient alone.

As in the paper, all three take their steps at once.

Departs from the paper: D has no batch-norm, so that it judges each pair alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method
from ..modalities import image
from ..parts.heads import Decoder
from ..parts.losses import in_float32
from ..parts.teachers import held


@in_float32
def told_apart(found: Tensor, made: Tensor) -> Tensor:
    """-V, Eq. (3), of the logits (N,) of pairs (x, E(x)) and (G(z), z)."""
    return F.softplus(-found).mean() + F.softplus(made).mean()


class Discriminator(nn.Module):
    """The logit (N,) of its belief that a picture (N, 3, H, W) was given and the code (N, Z) found for it."""

    def __init__(self, size: int, latent: int, width: int):
        super().__init__()
        layers, side, inputs, outputs = [], size, 3, max(width // 4, 1)
        while side > 4:
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            side, inputs, outputs = side // 2, outputs, min(2 * outputs, width)
        self.look = nn.Sequential(*layers, nn.Flatten())
        first, hidden = nn.Linear(inputs * side**2 + latent, 8 * width), nn.Linear(8 * width, 8 * width)
        self.judge = nn.Sequential(first, nn.LeakyReLU(0.2), hidden, nn.LeakyReLU(0.2), nn.Linear(8 * width, 1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.judge(torch.cat([self.look(x), z], dim=1)).squeeze(1)  # (N,)


class BiGAN(Method):
    """Section 3. A code must have fewer numbers than the encoder features, or all E(x) would lie in a plane among z."""

    columns = ("image",)

    def __init__(self, encoder: nn.Module, *, size: int, latent: Count = 200, width: Count = 64):
        super().__init__()
        if latent > encoder.dim:
            raise ValueError(f"`latent` {latent} must be at most the number of its features, {encoder.dim}")
        self.encoder = encoder
        self.code = nn.Linear(encoder.dim, latent)  # E(x) = code(encoder(x))
        self.generator = Decoder(latent, width, size)  # G, before its sigmoid
        self.discriminator = Discriminator(size, latent, width)  # D
        self.latent = latent

    def forward(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        z = torch.rand(len(x), self.latent, device=x.device) * 2 - 1  # (N, Z)
        pictures = torch.cat([x, self.generator(z).sigmoid()])  # (2N, 3, H, W)
        codes = torch.cat([self.code(self.encoder(x)), z])  # (2N, Z)

        found, made = self.discriminator(pictures.detach(), codes.detach()).chunk(2)  # (N,) each
        judged = told_apart(found, made)
        right = ((found > 0).float().mean() + (made < 0).float().mean()) / 2
        found, made = held(self.discriminator, pictures, codes).chunk(2)
        played = told_apart(made, found)  # the labels are swapped
        return judged + played, {"discriminator": judged.detach(), "players": played.detach(), "accuracy": right}

    def draw(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        return {"output": self.generator(self.code(self.encoder(x))).sigmoid(), "truth": x}
