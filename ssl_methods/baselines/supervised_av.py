"""Supervised: the sound tower trained with the labels, the ceiling at this budget. The video tower stays untrained.

    L = - log p(y | x)                                                     cross-entropy of a linear head

Unlabelled rows (label -1) do not count.
"""

import torch.nn.functional as F
from torch import nn

from .. import Method, NonNegative
from ..encoders import AudioVisual
from ..modalities import video_audio


class SupervisedAV(Method):
    """A linear classifier on the features of sound, and both learn."""

    columns = ("sound", "label")

    def __init__(self, encoder: AudioVisual, *, classes: int, strength: NonNegative = 1.0):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, classes)
        self.strength = strength

    def forward(self, batch):
        x, y = video_audio.sound_view(video_audio.unit(batch["sound"]), self.strength), batch["label"]
        logits, known = self.head(self.encoder.sound(x)).float(), y >= 0  # (N, classes), (N,)
        total = F.cross_entropy(logits, y, ignore_index=-1, reduction="sum")
        count = known.sum().clamp(min=1)  # a batch may hold no labelled row
        return total / count, {"accuracy": (logits.argmax(1) == y).sum() / count}
