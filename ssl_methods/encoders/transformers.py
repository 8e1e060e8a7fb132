"""Transformers: the vision transformer, and one for text."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Fraction
from .convolutional import centre


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d)) v. q, k, v: (N, heads, L, d); `seen` (N, 1, L, L), true where row may look at column.

    Written out for bfloat16 on a CPU: the backward pass of torch 2.14's fused kernel takes ten times as long there.
    """
    if q.device.type != "cpu" or q.dtype is not torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, seen)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT  # (N, heads, L, L)
    if seen is not None:  # added, which has no backward pass
        scores = scores + torch.zeros_like(seen, dtype=q.dtype).masked_fill_(~seen, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v  # (N, heads, L, d)


class Attention(nn.Module):
    """Multi-head self-attention. Vaswani et al. 2017, https://arxiv.org/abs/1706.03762"""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:  # (N, L, D)
        """`seen` (N, L, L) or (N, 1, L), if given, is true where the token of that row may look at that column's."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (N, heads, L, d)
        h = attend(q, k, v, None if seen is None else seen[:, None])  # (N, heads, L, d)
        return self.out(h.transpose(1, 2).flatten(2))  # (N, L, D)


class TransformerBlock(nn.Module):
    """Pre-norm attention and a two-layer perceptron, each with dropout and a residual connection."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:  # (N, L, D)
        x = x + self.drop(self.attention(self.norm1(x), seen))
        return x + self.drop(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """A stack of blocks and a last norm: tokens in, tokens out. `seen` as in `Attention`."""

    def __init__(self, width: int, depth: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:  # (N, L, D)
        for block in self.blocks:
            x = block(x, seen)
        return self.norm(x)


def sine_positions(side: int, width: int) -> Tensor:
    """Fixed sine-cosine embeddings of a side x side grid, half the width for each axis: (side * side, width)."""
    place = torch.arange(side, dtype=torch.float32)
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    angle = place[:, None] * frequency  # (side, width / 4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    rows, columns = axis.repeat_interleave(side, 0), axis.repeat(side, 1)
    return torch.cat([rows, columns], dim=1)


def patchify(x: Tensor, patch: int) -> Tensor:
    """Pictures as sequences of flat patches, row by row: (N, 3, H, W) -> (N, L, 3 * patch * patch)."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, c * patch * patch)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """What `patchify` made of square pictures, put together again: (N, L, 3 * patch * patch) -> (N, 3, H, H)."""
    side = round(patches.shape[1] ** 0.5)
    x = patches.unflatten(2, (3, patch, patch)).unflatten(1, (side, side))  # (N, rows, columns, 3, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(len(x), 3, side * patch, side * patch)


def at(h: Tensor, places: Tensor) -> Tensor:
    """The tokens (N, L, D) at the places (N, M): (N, M, D)."""
    return h.gather(1, places[:, :, None].expand(-1, -1, h.shape[2]))


class ViT(nn.Module):
    """A vision transformer without a class token: features are the mean of its tokens.

    Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; positions as in MAE, appendix A.1.
    """

    def __init__(self, *, size: int, patch: Count = 4, width: Count = 192, depth: Count = 6, heads: Count = 3):
        super().__init__()
        if size % patch or width % heads or width % 4:
            raise ValueError(
                f"a ViT needs `patch` {patch} to divide the pictures' size {size}, "
                f"and `heads` {heads} and 4 to divide `width` {width}"
            )
        self.patch, self.dim, self.length = patch, width, (size // patch) ** 2
        self.embed = nn.Linear(3 * patch * patch, width)
        self.register_buffer("positions", sine_positions(size // patch, width), persistent=False)
        self.transformer = Transformer(width, depth, heads)

    def enter(self, x: Tensor, hidden: Tensor | None = None, blank: Tensor | None = None) -> Tensor:
        """What enters the transformer: the patches of pictures (N, 3, H, W), embedded, with positions, (N, L, D).

        Where `hidden` (N, L) is true, the vector `blank` (D,) stands in the patch's place.
        """
        h = self.embed(patchify(centre(x), self.patch))
        if hidden is not None:
            h = torch.where(hidden[:, :, None], blank.to(h.dtype), h)
        return h + self.positions

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """The tokens of pictures (N, 3, H, W): all L, or those at the places `keep` (N, M), as (N, M, D)."""
        h = self.enter(x)  # (N, L, D)
        if keep is not None:
            h = at(h, keep)  # (N, M, D)
        return self.transformer(h)

    def depths(self, x: Tensor) -> dict[str, Tensor]:
        h, features = self.enter(x), {}
        for i, block in enumerate(self.transformer.blocks, 1):
            h = block(h)
            features[f"block {i}"] = h.mean(1)
        return features | {f"block {i}": self.transformer.norm(h).mean(1)}

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x).mean(1)  # (N, D)


class TextTransformer(nn.Module):
    """A transformer over tokens, as BERT's and GPT's: features are the mean of a sentence's tokens.

    Devlin, Chang, Lee, Toutanova. BERT. NAACL 2019. https://arxiv.org/abs/1810.04805
    Radford, Narasimhan, Salimans, Sutskever. Improving Language Understanding by Generative Pre-Training (GPT). 2018.

    Sentences are rows of token ids (N, L), padded with 0, which no token ever looks at; L is at most twice `length`, so
    that a pair fits. Where it is `causal`, a token sees those before it, and itself.

    Departs from the papers: norms stand before the layers, and one behind the last. Attention itself has no dropout.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: Count = 768,
        depth: Count = 12,
        heads: Count = 12,
        dropout: Fraction = 0.1,
        causal: bool = False,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"a TextTransformer needs `heads` {heads} to divide `width` {width}")
        self.dim, self.length, self.causal = width, length, causal
        self.embed = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(2 * length, width))
        for table in (self.embed.weight, self.positions):
            nn.init.normal_(table, std=0.02)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.transformer = Transformer(width, depth, heads, dropout)

    def enter(self, ids: Tensor) -> Tensor:
        """What enters the transformer: the tokens' embeddings with their positions, (N, L) -> (N, L, D)."""
        return self.drop(self.norm(self.embed(ids) + self.positions[: ids.shape[1]]))

    def seen(self, ids: Tensor) -> Tensor:
        """Which tokens a token may look at: (N, 1, L), or (1, L, L) where it is causal, as padding comes last."""
        if not self.causal:
            return (ids > 0)[:, None]
        place = torch.arange(ids.shape[1], device=ids.device)
        return (place <= place[:, None])[None]

    def tokens(self, ids: Tensor) -> Tensor:
        """(N, L) -> (N, L, D)"""
        return self.transformer(self.enter(ids), self.seen(ids))

    def depths(self, ids: Tensor) -> dict[str, Tensor]:
        """After each block, the token that may have seen all others ([CLS], or the last), and the mean."""
        h, seen, features = self.enter(ids), self.seen(ids), {}
        end, last = ("last", (ids > 0).sum(1) - 1) if self.causal else ("first", torch.zeros_like(ids[:, 0]))
        for i, block in enumerate(self.transformer.blocks, 1):
            h = block(h, seen)
            read = self.transformer.norm(h) if i == len(self.transformer.blocks) else h
            features[f"block {i} {end}"] = read[torch.arange(len(ids), device=ids.device), last]
            features[f"block {i} mean"] = self.mean(read, ids)
        return features

    def mean(self, h: Tensor, ids: Tensor) -> Tensor:
        """Of the tokens (N, L, D) that are no padding: (N, D). It is 0 where there are none."""
        real = (ids > 0)[:, :, None]
        return (h.float() * real).sum(1) / real.sum(1).clamp(min=1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.mean(self.tokens(ids), ids)  # (N, D)
