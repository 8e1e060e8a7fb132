"""Supervised: the sound tower trained with the labels, the ceiling at this budget. The video tower stays untrained.

    L = - log p(y | x)                                                     cross-entropy of a linear head

Unlabelled rows (label -1) do not count.
"""

from torch import nn

from .. import Method, NonNegative
from ..encoders.pairs import AudioVisual
from ..modalities import video_audio
from ..parts.losses import labelled_loss


class SupervisedAV(Method):
    """A linear classifier on the features of sound, and both learn."""

    columns = ("sound", "label")

    def __init__(self, encoder: AudioVisual, *, classes: int, strength: NonNegative = 1.0):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, classes)
        self.strength = strength

    def forward(self, batch):
        x = video_audio.sound_view(video_audio.unit(batch["sound"]), self.strength)
        loss, right = labelled_loss(self.head(self.encoder.sound(x)), batch["label"])
        return loss, {"accuracy": right}
