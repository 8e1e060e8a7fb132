"""VAE: a picture's code is a small cloud, as near to a standard normal as drawing the picture again allows.

Kingma, Welling. Auto-Encoding Variational Bayes. ICLR 2014. https://arxiv.org/abs/1312.6114
The weight beta is that of Higgins et al., beta-VAE, ICLR 2017, https://openreview.net/forum?id=Sy2fzU9gl; 1 is the VAE.

    q(z | x) = N(mu, sigma^2),  z = mu + sigma e,  e ~ N(0, 1)             Eq. (9) and section 2.4
    KL = 1/2 sum (mu^2 + sigma^2 - 1 - log sigma^2)                        Eq. (10), Appendix B; from N(0, 1)
    log p(x | z) = sum x log y + (1 - x) log(1 - y)                        Eq. (11): Bernoulli pixels, y = d(z)
    L = beta KL - log p(x | z)                                             Eq. (10), beta = 1

Departs from the paper: convolutional; pixels lie anywhere between 0 and 1; the loss is per pixel value, to suit the
learning rates of its siblings, while both of its terms are plotted per picture, in nats. The features are the
encoder's, from which mu and log sigma^2 are read off.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method, NonNegative
from ..modalities import image
from ..parts.heads import Decoder
from ..parts.losses import in_float32


def draw_code(mean: Tensor, log_variance: Tensor) -> Tensor:
    """z ~ N(mean, variance), differentiable in both. (N, Z) each."""
    return mean + (log_variance / 2).exp() * torch.randn_like(mean)


@in_float32
def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Eq. (10): the KL divergence from N(0, 1) in nats, averaged over the batch. (N, Z) each."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2


@in_float32
def surprise(logits: Tensor, x: Tensor) -> Tensor:
    """Eq. (11): -log p(x | z) in nats, averaged over the batch; y = sigmoid(logits). (N, 3, H, W) each."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)


class VAE(Method):
    """Section 3."""

    columns = ("image",)

    def __init__(
        self, encoder: nn.Module, *, size: int, latent: Count = 200, width: Count = 64, beta: NonNegative = 1.0
    ):
        super().__init__()
        self.encoder = encoder
        self.posterior = nn.Linear(encoder.dim, 2 * latent)
        self.decoder = Decoder(latent, width, size)  # d, before its sigmoid
        self.beta = beta

    def forward(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        mean, log_variance = self.posterior(self.encoder(x)).float().chunk(2, dim=1)  # (N, Z) each
        kl = divergence(mean, log_variance)
        reconstruction = surprise(self.decoder(draw_code(mean, log_variance)), x)
        loss = (reconstruction + self.beta * kl) / x[0].numel()
        return loss, {"reconstruction": reconstruction.detach(), "kl": kl.detach()}

    def draw(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        mean, _ = self.posterior(self.encoder(x)).chunk(2, dim=1)
        return {"output": self.decoder(mean).sigmoid(), "truth": x}
