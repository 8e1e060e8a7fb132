"""PCA: the directions in which pictures vary most, the oldest unsupervised features.

Pearson. On Lines and Planes of Closest Fit to Systems of Points in Space. 1901. https://doi.org/10.1080/14786440109462720

    S = mean of (x - m)(x - m)^T                                           covariance of the pixels, batch by batch
    W = the eigenvectors of S with the largest eigenvalues,  h = W (x - m)
"""

import torch

from .. import Method
from ..encoders.shallow import Projection
from ..modalities import image
from ..parts.processes import gather
from ..parts.statistics import Moments


class PCA(Method):
    """Needs the `Projection` encoder, whose linear map it fills after one pass over the data."""

    columns = ("image",)
    passes = 1

    def __init__(self, encoder: Projection):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.pixels = Moments(encoder.linear.in_features)

    def forward(self, batch):
        x = self.encoder.pixels(image.unit(batch["image"]))  # (N, P)
        self.pixels.add(gather(x))
        return x.var(0).sum(), {}  # the variance that there is to explain

    def after_step(self):
        if self.progress < 1:
            return
        axes = torch.linalg.eigh(self.pixels.covariance()).eigenvectors.flip(1)[:, : self.encoder.dim].T  # (D, P)
        self.encoder.linear.weight.copy_(axes)
        self.encoder.linear.bias.copy_(-axes @ self.pixels.mean())
