"""data2vec: with much of the picture hidden, foretell what a slow teacher makes of all of it, layer by layer.

Baevski, Hsu, Xu, Babu, Gu, Auli. data2vec: A General Framework for Self-supervised Learning in Speech, Vision and
Language. ICML 2022. https://arxiv.org/abs/2202.03555

    y = mean over the top K blocks l of LN(a_l)                            section 3.3, a_l: what the teacher's block l
                                                                           adds last, LN: layer-norm without parameters
    L = (y - f(x))^2 / (2 beta)  where |y - f(x)| <= beta,  else  |y - f(x)| - beta / 2        section 3.4, where hidden
    teacher <- t teacher + (1 - t) student                                 section 3.3

As for the paper's ViT-B, t is constant.

Departs from the paper: squares are hidden in place of blocks of many shapes; the teacher has patch embeddings of its
own; no colour jitter.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative, Positive
from ..modalities import image
from ..parts.losses import in_float32, masked_mean
from ..parts.statistics import spread
from ..parts.teachers import follow, teacher_of


def feed_forwards(encoder: nn.Module, x: Tensor) -> list[Tensor]:
    """What the perceptron of each block puts out, before it is added to what came in: (N, L, D) each."""
    h, outputs = encoder.enter(x), []
    for block in encoder.transformer.blocks:
        h = h + block.attention(block.norm1(h))
        outputs.append(block.mlp(block.norm2(h)))
        h = h + outputs[-1]
    return outputs


@in_float32
def mean_of_layers(*layers: Tensor) -> Tensor:
    """y, from a_l (N, L, D) each."""
    return torch.stack([F.layer_norm(a, a.shape[-1:]) for a in layers]).mean(0)


@in_float32
def hidden_regression(predicted: Tensor, target: Tensor, hidden: Tensor, beta: float) -> Tensor:
    """Section 3.4, averaged. predicted, target: (N, L, D); hidden: (N, L), true where hidden."""
    error = F.smooth_l1_loss(predicted, target, beta=beta, reduction="none").mean(-1)  # (N, L)
    return masked_mean(error, hidden)


class Data2Vec(Method):
    """Section 3; needs a ViT as the encoder. `square` is the side of what is hidden together, in patches."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        mask: Fraction = 0.6,
        square: Count = 2,
        top: Count = 6,
        beta: Positive = 2.0,
        strength: NonNegative = 1.0,
        momentum: Fraction = 0.9998,
    ):
        super().__init__()
        self.encoder = encoder
        self.teacher = teacher_of(encoder)
        self.side, depth = round(encoder.length**0.5), len(encoder.transformer.blocks)
        if self.side % square or top > depth:
            raise ValueError(
                f"`square` {square} must divide the {self.side} patches of a side, "
                f"and `top` {top} be no more than its {depth} blocks"
            )
        self.blank = nn.Parameter(torch.randn(encoder.dim) * 0.02)  # what stands for a hidden patch
        self.head = nn.Linear(encoder.dim, encoder.dim)
        self.mask, self.square, self.top, self.beta = mask, square, top, beta
        self.strength, self.momentum = strength, momentum

    def forward(self, batch):
        x = image.light_view(image.unit(batch["image"]), self.strength)  # (N, 3, H, W)
        hidden = image.hidden_squares(x, self.side, self.square, self.mask)  # (N, L)
        h = self.encoder.transformer(self.encoder.enter(x, hidden, self.blank))  # (N, L, D)
        with torch.no_grad():
            y = mean_of_layers(*feed_forwards(self.teacher, x)[-self.top :])  # (N, L, D)
        return hidden_regression(self.head(h), y, hidden, self.beta), {"spread": spread(y.mean(1))}

    def after_step(self):
        follow(self.teacher, self.encoder, self.momentum)
