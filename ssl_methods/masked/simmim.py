"""SimMIM: with squares of the picture blotted out, the encoder itself must say what colours they had.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu. SimMIM: A Simple Framework for Masked Image Modeling. CVPR 2022.
https://arxiv.org/abs/2111.09886

    L = | y_M - x_M |_1 / (values in x_M)                                  Eq. (1), x_M, y_M: pixels of hidden patches

Departs from the paper: positions are fixed sines and not relative biases; crops are those of MAE.
"""

import torch
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative
from ..encoders.convolutional import centre
from ..encoders.transformers import patchify, unpatchify
from ..modalities import image
from ..parts.losses import in_float32, masked_mean


@in_float32
def absolute_error(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Eq. (1). predicted, target: (N, L, P); hidden: (N, L), true where hidden."""
    error = (predicted - target).abs().mean(-1)  # (N, L)
    return masked_mean(error, hidden)


class SimMIM(Method):
    """Section 3; needs a ViT as the encoder. `square` is the side of what is hidden together, in patches."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        mask: Fraction = 0.6,
        square: Count = 2,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder
        self.side = round(encoder.length**0.5)
        if self.side % square:
            raise ValueError(f"`square` {square} must divide the {self.side} patches of a side")
        self.blank = nn.Parameter(torch.randn(encoder.dim) * 0.02)  # what stands for a hidden patch
        self.head = nn.Linear(encoder.dim, 3 * encoder.patch**2)
        self.mask, self.square, self.strength = mask, square, strength

    def forward(self, batch):
        x = image.light_view(image.unit(batch["image"]), self.strength)  # (N, 3, H, W)
        hidden = image.hidden_squares(x, self.side, self.square, self.mask)  # (N, L)
        return absolute_error(self.predict(x, hidden), patchify(centre(x), self.encoder.patch), hidden), {}

    def predict(self, x: Tensor, hidden: Tensor) -> Tensor:
        """y of every patch: (N, 3, H, W) and (N, L), true where hidden -> (N, L, P)."""
        return self.head(self.encoder.transformer(self.encoder.enter(x, hidden, self.blank)))

    def draw(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        hidden = image.hidden_squares(x, self.side, self.square, self.mask)  # (N, L)
        patches, drawn = patchify(x, self.encoder.patch), self.predict(x, hidden) / 4 + 0.5  # `centre`, undone
        shown = {"input": torch.full_like(patches, 0.5), "output": drawn.to(x.dtype), "truth": patches}
        return {
            name: unpatchify(torch.where(hidden[:, :, None], p, patches), self.encoder.patch)
            for name, p in shown.items()
        }
