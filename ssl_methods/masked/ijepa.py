"""I-JEPA: from what is seen of a picture, foretell the features, not the pixels, of blocks that are not.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas. Self-Supervised Learning from Images with a
Joint-Embedding Predictive Architecture. CVPR 2023. https://arxiv.org/abs/2301.08243

    s_y = f'(y)                                                            target encoder f', of the whole picture
    s_x = f(x)                                                             context encoder f, of what no block covers
    L = mean over blocks i and patches j in block i of  D(g(s_x, m_j), s_yj)            predictor g, asked at place j
    f' <- l f' + (1 - l) f                                                 l: linear from its start to 1

As in the authors' code, D is the smooth L1 distance, and s_y is layer-normed. The encoder that is evaluated is f', as
in the paper.

Departs from the paper: blocks have one size, either upright or lying; the context is a random choice, equally many
patches of every picture, from all that no block covers, where the paper takes those in one large block; pictures are
cropped and mirrored as for MAE.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Fraction, Method, NonNegative, Positive
from ..encoders.transformers import Transformer, at, sine_positions
from ..modalities import image
from ..parts.losses import in_float32
from ..parts.statistics import spread
from ..parts.teachers import follow, teacher_of


def draw_blocks(x: Tensor, side: int, blocks: int, height: int, width: int) -> Tensor:
    """The places of random blocks in a side x side grid, (N, M, T): T = height * width, upright or turned aside."""
    turned = torch.rand(len(x), blocks, 1, device=x.device) < 0.5
    rows = torch.where(turned, width, height)  # (N, M, 1)
    columns = height + width - rows
    top = (torch.rand(rows.shape, device=x.device) * (side - rows + 1)).long()
    left = (torch.rand(rows.shape, device=x.device) * (side - columns + 1)).long()
    within = torch.arange(height * width, device=x.device)
    return (top + within // columns) * side + left + within % columns


def draw_context(blocks: Tensor, length: int, count: int) -> Tensor:
    """`count` random places of 0..length - 1 that no block covers, (N, M, T) -> (N, count)."""
    covered = torch.zeros(len(blocks), length, device=blocks.device).scatter(1, blocks.flatten(1), 1.0)
    return (covered + torch.rand_like(covered)).argsort(1)[:, :count]


@in_float32
def distance(predicted: Tensor, target: Tensor) -> Tensor:
    """L, for layer-normed targets. Both (N, M, T, D)."""
    return F.smooth_l1_loss(predicted, F.layer_norm(target, target.shape[-1:]))


class IJEPA(Method):
    """Section 3; needs an encoder with `tokens(x, keep)`, such as the ViT. A block has `scale` of all patches."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        blocks: Count = 4,
        scale: Fraction = 0.175,
        aspect: Positive = 0.75,
        width: Count = 384,
        depth: Count = 6,
        heads: Count = 12,
        strength: NonNegative = 1.0,
        momentum: Fraction = 0.996,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.teacher = teacher_of(encoder)  # f'
        self.side, self.blocks = round(encoder.length**0.5), blocks
        self.shape = [max(1, round((encoder.length * scale * a) ** 0.5)) for a in (aspect, 1 / aspect)]
        self.seen = encoder.length - blocks * self.shape[0] * self.shape[1]  # even if no two blocks overlap
        if self.seen < 1 or max(self.shape) > self.side:
            raise ValueError(f"{blocks} blocks of {self.shape} patches leave nothing of {encoder.length} to be seen")
        self.enter = nn.Linear(encoder.dim, width)
        self.blank = nn.Parameter(torch.randn(width) * 0.02)  # m, without its place
        self.register_buffer("positions", sine_positions(self.side, width), persistent=False)
        self.predictor = Transformer(width, depth, heads)  # g
        self.leave = nn.Linear(width, encoder.dim)
        self.strength, self.momentum = strength, momentum

    def forward(self, batch):
        x = image.light_view(image.unit(batch["image"]), self.strength)  # (N, 3, H, W)
        places = draw_blocks(x, self.side, self.blocks, *self.shape)  # (N, M, T)
        keep = draw_context(places, self.encoder.length, self.seen)  # (N, C)

        context = self.enter(self.encoder.tokens(x, keep)) + self.positions[keep]  # (N, C, W)
        asked = self.blank + self.positions[places]  # (N, M, T, W)
        h = torch.cat([context[:, None].expand(-1, self.blocks, -1, -1), asked], dim=2)  # (N, M, C + T, W)
        h = self.predictor(h.flatten(0, 1))[:, self.seen :]  # (N * M, T, W)
        predicted = self.leave(h).view(*places.shape, -1)  # (N, M, T, D)

        with torch.no_grad():
            whole = self.teacher.tokens(x)  # (N, L, D)
        target = at(whole, places.flatten(1)).view(predicted.shape)
        return distance(predicted, target), {"spread": spread(whole.mean(1))}

    def after_step(self):
        follow(self.teacher, self.encoder, self.momentum + (1 - self.momentum) * self.progress)
        if self.progress == 1:
            self.encoder.load_state_dict(self.teacher.state_dict())
