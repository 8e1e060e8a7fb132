"""Jigsaw: in which order were the nine tiles of the picture laid? To tell, one must know its parts.

Noroozi, Favaro. Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles. ECCV 2016.
https://arxiv.org/abs/1603.09246

    A_i = a tile at a random place in cell i of a 3 x 3 grid, of zero mean and unit deviation
    L = - log p(s | f(A_s(1)), ..., f(A_s(9)))                             s: one of K fixed orders

The K orders are far apart: each differs in the most places from all those chosen before it (Algorithm 1). Against
shortcuts, neighbours leave a random gap, tiles are normalised one by one, and some pictures lose their colour.

Departs from the paper: the encoder's pooled features stand in for fc6, and batch-norm is over all tiles. The channels
are not shifted against each other, which hides the chromatic aberration of lenses.
"""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Fraction, Method
from ..modalities import image
from ..parts.heads import mlp


@functools.cache
def distant_orders(count: int) -> Tensor:
    """Algorithm 1: `count` permutations of 0..8, the same in every run, (count, 9)."""
    every = torch.tensor(list(itertools.permutations(range(9))), dtype=torch.uint8)
    every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))].T.contiguous()  # (9, 9!)
    shared = torch.zeros(every.shape[1])  # places at which a permutation agrees with those chosen
    chosen, best = [], 0
    for _ in range(count):
        chosen.append(every[:, best])
        shared += (every == every[:, best, None]).sum(0)
        shared[best] = torch.inf
        best = int(shared.argmin())
    return torch.stack(chosen).long()


def tiles_of(x: Tensor, order: Tensor) -> Tensor:
    """The tiles of cells `order` (N, 9), each at a random place in its cell: (N, 9, 3, t, t)."""
    cell = x.shape[2] // 3
    tile = cell * 64 // 75  # the paper's proportion
    start = torch.randint(x.shape[2] - 3 * cell + 1, (2, len(x), 1), device=x.device)  # of the grid
    gap = torch.randint(cell - tile + 1, (2, *order.shape), device=x.device)
    top, left = start + gap + cell * torch.stack([order // 3, order % 3])  # (N, 9) each
    return image.cut(x, top, left, tile)


def normalise(tiles: Tensor) -> Tensor:
    """Each channel of each tile to zero mean and unit deviation; what deviates by less than 0.01 stays flat."""
    centred = tiles - tiles.mean((-2, -1), keepdim=True)
    return centred / (centred.square().mean((-2, -1), keepdim=True) + 1e-4).sqrt()


def back(tiles: Tensor, order: Tensor) -> Tensor:
    """Tiles (N, 9, 3, t, t) of cells `order` (N, 9), put back in the order of the cells."""
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], order.argsort(1)]


def lay(tiles: Tensor) -> Tensor:
    """Nine tiles each, (N, 9, 3, t, t), side by side, three in a row: (N, 3, 3t, 3t)."""
    n, _, c, t, _ = tiles.shape
    return tiles.view(n, 3, 3, c, t, t).permute(0, 3, 1, 4, 2, 5).reshape(n, c, 3 * t, 3 * t)


class Jigsaw(Method):
    """Section 3. `side` is what tiles are enlarged to for the encoder."""

    columns = ("image",)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        permutations: Count = 1000,
        hidden: Count = 4096,
        side: Count = 64,
        grey: Fraction = 0.3,
    ):
        super().__init__()
        self.encoder = encoder  # f
        self.head = mlp(9 * encoder.dim, hidden, permutations)
        self.register_buffer("orders", distant_orders(permutations).clone(), persistent=False)
        self.side, self.grey = side, grey

    def forward(self, batch):
        x = image.grey(image.unit(batch["image"]), self.grey)  # (N, 3, H, W)
        y = torch.randint(len(self.orders), (len(x),), device=x.device)  # (N,)
        logits = self.guess(tiles_of(x, self.orders[y]))  # (N, permutations)
        return F.cross_entropy(logits, y), {"accuracy": (logits.argmax(1) == y).float().mean()}

    def guess(self, tiles: Tensor) -> Tensor:
        """The logits of each order: (N, 9, 3, t, t) -> (N, permutations)."""
        tiles = F.interpolate(normalise(tiles).flatten(0, 1), size=(self.side, self.side), mode="bilinear")
        h = self.encoder(tiles / 4 + 0.5).unflatten(0, (-1, 9)).flatten(1)  # (N, 9D); encoders centre what they see
        return self.head(h).float()

    def draw(self, batch):
        x = image.unit(batch["image"])  # (N, 3, H, W)
        order = self.orders[torch.randint(len(self.orders), (len(x),), device=x.device)]  # (N, 9)
        tiles = tiles_of(x, order)
        guessed = self.orders[self.guess(tiles).argmax(1)]
        return {"input": lay(tiles), "output": lay(back(tiles, guessed)), "truth": lay(back(tiles, order))}
