"""AVC: does this sound belong to this film? To tell, one must know what makes which sound.

Arandjelovic, Zisserman. Look, Listen and Learn. ICCV 2017. https://arxiv.org/abs/1705.08168
Arandjelovic, Zisserman. Objects that Sound. ECCV 2018. https://arxiv.org/abs/1712.06651

    v, s = f_v(film), f_s(sound)                                           each in the shared space
    p(v, s) = sigmoid(a cos(v, s) + b)                                     2018, AVE-Net
    L = - log p(v_i, s_i) - log (1 - p(v_i, s_j)),  j != i                 2017, section 2

The head is that of 2018, with which the two sides compare; that of 2017 is a small network on both, side by side.

Departs from the papers: the cosine, of which AVE-Net's distance is a function; every film of a batch is shown with its
own sound and with one other, and the sound that does not belong is another row's, which may be of the same play.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Method, NonNegative, Positive
from ..encoders.pairs import AudioVisual
from ..modalities import video_audio
from ..parts.losses import in_float32
from ..parts.processes import gather


@in_float32
def correspondence(zv: Tensor, zs: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """a cos(v, s) + b of each film with its own sound, and of each with its neighbour's: (N, S), (N, S) -> (2, N)."""
    zv, zs = F.normalize(gather(zv), dim=1), F.normalize(gather(zs), dim=1)
    cosine = torch.stack([(zv * zs).sum(1), (zv * zs.roll(1, 0)).sum(1)])
    return slope * cosine + offset


class AVC(Method):
    """Section 2 of the first, with the head of the second."""

    columns = ("video", "sound")

    def __init__(self, encoder: AudioVisual, *, slope: Positive = 10.0, strength: NonNegative = 1.0):
        super().__init__()
        self.encoder = encoder  # f_v, f_s
        self.slope, self.offset = nn.Parameter(torch.tensor(slope)), nn.Parameter(torch.tensor(0.0))  # a, b
        self.strength = strength

    def forward(self, batch):
        video, sound = video_audio.views(batch, self.strength)
        own, other = correspondence(*self.encoder(video, sound), self.slope, self.offset)  # (N,) each
        loss = (F.softplus(-own) + F.softplus(other)).mean()
        return loss, {"accuracy": torch.cat([own > 0, other <= 0]).float().mean()}
