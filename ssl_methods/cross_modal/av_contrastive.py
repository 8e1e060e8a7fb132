"""Audio-visual contrast: a film must find its sound, and a sound its film, among those of the batch and of its play.

Morgado, Vasconcelos, Misra. Audio-Visual Instance Discrimination with Cross-Modal Agreement. CVPR 2021.
https://arxiv.org/abs/2004.12943
Korbar, Tran, Torresani. Cooperative Learning of Audio and Video Models from Self-Supervised Synchronization. NeurIPS
2018. https://arxiv.org/abs/1807.00230

    v, s = f_v(film), f_s(sound)                                           each in the shared space
    C(q, k) = mean of -log  exp(q_i . k_i / T) / sum_j exp(q_i . k_j / T)  InfoNCE, of cosines
    L = 1/2 (C(v, s) + C(s, v))                                            Cross-AVID
    and w times the same, where j runs over rows of one play               Korbar et al.: hard negatives

The second asks what sounds now, for all moments of a play look and sound much alike. Of a row alone in its play, it
asks nothing.

Departs from the papers: negatives are the rest of the batch, where AVID keeps all rows in a memory; a linear map leads
into the shared space; Korbar et al. minimise a margin loss, and bring hard negatives in late.
"""

import math

from .. import Method, NonNegative, Positive
from ..encoders.pairs import AudioVisual
from ..modalities import video_audio
from ..parts.losses import info_nce
from ..parts.processes import all_rows


class AVContrastive(Method):
    """Cross-AVID, with hard negatives."""

    columns = ("video", "sound", "clip")

    def __init__(
        self,
        encoder: AudioVisual,
        *,
        temperature: Positive = 0.07,
        hard: NonNegative = 1.0,
        strength: NonNegative = 1.0,
    ):
        super().__init__()
        self.encoder = encoder  # f_v, f_s
        self.temperature, self.hard, self.strength = temperature, hard, strength

    def forward(self, batch):
        zv, zs = self.encoder(*video_audio.views(batch, self.strength))  # (N, S) each
        loss, hard = (
            (info_nce(zv, zs, self.temperature, among) + info_nce(zs, zv, self.temperature, among)) / 2
            for among in (None, batch["clip"])
        )
        return loss + self.hard * hard, {"information": math.log(all_rows(zv)) - loss.detach(), "hard": hard.detach()}
