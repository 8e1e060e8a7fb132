"""CLIP: a picture must find its caption, and a caption its picture, among those of the batch.

Radford et al. Learning Transferable Visual Models From Natural Language Supervision. ICML 2021.
https://arxiv.org/abs/2103.00020

    v, t = f_v(picture), f_t(caption)                                      each in the shared space
    C(q, k) = mean of -log  exp(q_i . k_i / T) / sum_j exp(q_i . k_j / T)  InfoNCE, of cosines
    L = 1/2 (C(v, t) + C(t, v))                                            Figure 3
    1 / T is learned, as exp(s), and is at most 100                        section 2.5

Departs from the paper: the text tower sees both ways, and its features are the mean of its tokens. As in the paper,
pictures that share a caption are each other's negatives where they meet in a batch.
"""

import math

import torch
from torch import nn

from .. import Method, NonNegative, Positive
from ..encoders.pairs import ImageText
from ..modalities import image_text
from ..parts.losses import info_nce
from ..parts.processes import all_rows

SHARPEST = math.log(100)  # of s


class CLIP(Method):
    """Sections 2.3 to 2.5."""

    columns = ("image", "token")

    def __init__(self, encoder: ImageText, *, temperature: Positive = 0.07, strength: NonNegative = 1.0):
        super().__init__()
        self.encoder = encoder  # f_v, f_t
        self.scale = nn.Parameter(torch.tensor(-math.log(temperature)))  # s
        self.strength = strength

    def forward(self, batch):
        x = image_text.view(image_text.unit(batch["image"]), self.strength)
        v, t = self.encoder(x, batch["token"])  # (N, S) each
        temperature = (-self.scale).exp()
        loss = (info_nce(v, t, temperature) + info_nce(t, v, temperature)) / 2
        return loss, {"information": math.log(all_rows(v)) - loss.detach(), "temperature": temperature.detach()}

    @torch.no_grad()
    def after_step(self):
        self.scale.clamp_(max=SHARPEST)
