"""The networks that are pretrained, frozen and evaluated.

Every encoder maps a batch to features (N, D) and says D in `dim`; `depths` names the features (N, D') after each of its
stages, the last being those, and where there are two towers those of each. Image encoders take pictures in [0, 1] and
centre them themselves, so that no method can forget to.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Count, Fraction

AMX = torch.cpu.get_capabilities().get("amx_bf16", False)  # units for products of matrices in bfloat16


def centre(x: Tensor) -> Tensor:
    """Pictures in [0, 1] to about zero mean and unit variance, the same for every data set."""
    return (x - 0.5) * 4


class SmallMaps(torch.autograd.Function):
    """A convolution of small maps, without a bias, whose weights' gradient is one matrix product."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """x: (N, C, H, W), weight: (O, C, k, k), both of one type -> (N, O, h, w), padded by half of k."""
        ctx.save_for_backward(x, weight)
        ctx.how = {"stride": stride, "padding": weight.shape[2] // 2}
        return F.conv2d(x, weight, **ctx.how)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        stride, k = ctx.how["stride"], weight.shape[2]
        of_x = torch.nn.grad.conv2d_input(x.shape, weight, gradient, **ctx.how)
        rows = F.pad(x, [k // 2] * 4).permute(0, 2, 3, 1)  # (N, H + k - 1, W + k - 1, C), as it lies in memory
        seen = rows.unfold(1, k, stride).unfold(2, k, stride).permute(0, 1, 2, 4, 5, 3)  # (N, h, w, k, k, C)
        product = gradient.permute(0, 2, 3, 1).flatten(0, 2).T @ seen.flatten(3).flatten(0, 2)  # (O, k k C)
        return of_x, product.unflatten(1, (k, k, -1)).permute(0, 3, 1, 2), None


class Conv(nn.Conv2d):
    """A convolution without a bias, padded by half of its kernel.

    In bfloat16 with AMX, torch 2.14's gradient of the weights takes two to ten times as long as a matrix product where
    maps are small, so there it is one.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stride = self.stride[0]
        places = -(-x.shape[2] // stride) * -(-x.shape[3] // stride)  # of a map that comes out
        if AMX and x.device.type == "cpu" and x.dtype is torch.bfloat16 and places <= self.in_channels:
            return SmallMaps.apply(x, self.weight.to(x.dtype), stride)
        return super().forward(x)


class Block(nn.Module):
    """The basic residual block. He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016.

    https://arxiv.org/abs/1512.03385
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = Conv(inputs, outputs, 3, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = Conv(outputs, outputs, 3)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(Conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(self.conv1(x)).relu_()  # in place, for no backward pass needs what comes out of a norm
        return self.norm2(self.conv2(h)).add_(self.shortcut(x)).relu_()


class ResNet(nn.Module):
    """A residual network for small pictures: a 3x3 stem with padding 1 (5x5 where its stride is 4), no max-pooling.

    `width` 64 and `blocks` [2, 2, 2, 2] is the ResNet-18 of the CIFAR literature. `stride` in the stem makes everything
    that follows cheaper, by its square, which suits a laptop. `noise` lists shares of variance, of pictures from -1 to
    1: its depths are then also the features of pictures in that much noise, where a denoiser has something to look for.
    """

    def __init__(
        self,
        *,
        width: Count = 64,
        blocks: Sequence[Count] = (2, 2, 2, 2),
        stride: Count = 1,
        noise: Sequence[Fraction] = (),
    ):
        super().__init__()
        self.noise = noise
        side = max(3, stride | 1)  # odd, and at least the stride, so that no pixel is passed over
        self.stem = nn.Conv2d(3, width, side, stride, padding=side // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages, inputs = [], width
        for depth, count in enumerate(blocks):
            outputs = width * 2**depth
            first = Block(inputs, outputs, stride=2 if depth else 1)
            stages.append(nn.Sequential(first, *(Block(outputs, outputs, stride=1) for _ in range(count - 1))))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.dim = inputs

    def maps(self, x: Tensor) -> list[Tensor]:
        """The feature maps (N, D, h, w) after each stage; each stage doubles the width and halves the sides."""
        h = centre(x).contiguous(memory_format=torch.channels_last)  # (N, 3, H, W)
        h = self.norm(self.stem(h)).relu_()
        return [h := stage(h) for stage in self.stages]

    def depths(self, x: Tensor) -> dict[str, Tensor]:
        *earlier, last = ((f"stage {i}", h.mean((2, 3))) for i, h in enumerate(self.maps(x), 1))
        return dict([*earlier, *((f"noise {s}", self(self.noisy(x, s))) for s in self.noise), last])

    def noisy(self, x: Tensor, share: float) -> Tensor:
        """The same noise in every picture, so that what is beside it in a batch does not matter."""
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)  # (3, H, W)
        return ((1 - share) ** 0.5 * (2 * x - 1) + share**0.5 * noise + 1) / 2

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1].mean((2, 3))  # (N, D)


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


class Dropout(nn.Module):
    """Zeroes units at random, in training alone, and scales the others so that the mean stays.

    Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html. Each is dropped with probability p, to the
    nearest 256th and below 1: it takes one byte of a random number of eight, where `nn.Dropout` takes a number of its
    own, which on a CPU takes four times as long.
    """

    def __init__(self, p: float):
        super().__init__()
        self.dropped = min(round(256 * p), 255)  # of 256

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.dropped):
            return x
        *rows, width = x.shape
        numbers = torch.empty(*rows, -(-width // 8), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = (numbers.view(torch.uint8)[..., :width] >= self.dropped).view(torch.uint8)  # which converts quicker
        return x * (kept.to(x.dtype) * (256 / (256 - self.dropped)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and a two-layer perceptron, each with dropout and a residual connection."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = Dropout(dropout)

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
        self.norm, self.drop = nn.LayerNorm(width), Dropout(dropout)
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


class Shallow(nn.Module):
    """An encoder of a single stage."""

    def depths(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": self(x)}


class Pixels(Shallow):
    """The pixels themselves, with nothing to train: pictures are first reduced to side x side."""

    def __init__(self, *, side: Count = 32):
        super().__init__()
        self.side, self.dim = side, 3 * side * side

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(centre(x), self.side).flatten(1)  # (N, 3 * side * side)


class Projection(Shallow):
    """One linear map of the pixels, which PCA fills: pictures are first reduced to side x side."""

    def __init__(self, *, side: Count = 16, width: Count = 128):
        super().__init__()
        self.pixels, self.dim = Pixels(side=side), width
        self.linear = nn.Linear(self.pixels.dim, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pixels(x))  # (N, D)


class BagOfWords(Shallow):
    """How often each token occurs in a sentence, tf-idf weighted and of unit length, through one linear map.

    Which LSA fills. The weights are scikit-learn's `TfidfVectorizer`'s.
    """

    def __init__(self, *, vocabulary: int, width: Count = 100):
        super().__init__()
        self.dim = width
        self.idf = nn.Parameter(torch.ones(vocabulary))
        self.linear = nn.Linear(vocabulary, width, bias=False)

    def counts(self, ids: Tensor) -> Tensor:
        """How often each token occurs; the special ones ([PAD], [CLS], [SEP], [MASK]) do not count. (N, L) -> (N, V)"""
        return torch.zeros(len(ids), len(self.idf), device=ids.device).scatter_add(1, ids.long(), (ids > 3).float())

    def weighted(self, ids: Tensor) -> Tensor:
        """(N, L) -> (N, V), of unit length"""
        return F.normalize(self.counts(ids) * self.idf, dim=1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.weighted(ids))  # (N, D)


class Dictionary(Shallow):
    """How near each patch of a picture is to each of `width` centroids, summed over the picture's four quadrants.

    K-means fills it. Coates, Lee, Ng. An Analysis of Single-Layer Networks in Unsupervised Feature Learning. AISTATS
    2011. https://proceedings.mlr.press/v15/coates11a.html
    """

    def __init__(self, *, patch: Count = 6, width: Count = 1600):
        super().__init__()
        self.patch, self.dim = patch, 4 * width
        values = 3 * patch * patch  # P
        self.mean = nn.Parameter(torch.zeros(values))
        self.whitening = nn.Parameter(torch.eye(values))
        self.centroids = nn.Parameter(torch.randn(width, values))  # (K, P)

    def normalise(self, patches: Tensor) -> Tensor:
        """Each patch (..., P) to zero mean and unit variance, where it has any: 10 is little on the scale of 0..255."""
        return F.layer_norm(patches, patches.shape[-1:], eps=10 / 255**2)

    def whiten(self, patches: Tensor) -> Tensor:
        """(..., P) -> (..., P)"""
        return F.linear(patches, self.whitening.T, -self.mean @ self.whitening)

    def activation(self, x: Tensor) -> Tensor:
        """The triangle: by how much each centroid is nearer than the mean one. (N, 3, H, W) -> (N, places, K)"""
        patches = self.whiten(self.normalise(F.unfold(x, self.patch).mT))  # (N, places, P)
        distance = torch.cdist(patches.flatten(0, 1), self.centroids).unflatten(0, patches.shape[:2])
        return F.relu(distance.mean(2, keepdim=True) - distance)

    def forward(self, x: Tensor) -> Tensor:
        half = (x.shape[2] - self.patch + 2) // 2  # of the places where a patch may begin
        near, far = slice(half + self.patch - 1), slice(half, None)
        quadrants = [x[:, :, rows, cols] for rows in (near, far) for cols in (near, far)]
        return torch.cat([self.activation(quadrant).sum(1) for quadrant in quadrants], dim=1)  # (N, 4 * K)


class SoundResNet(ResNet):
    """The same network for spectrograms (N, T, M) in [0, 1], which are pictures of one channel."""

    def __init__(self, *, width: Count = 64, blocks: Sequence[Count] = (2, 2, 2, 2), stride: Count = 1):
        super().__init__(width=width, blocks=blocks, stride=stride)
        self.stem = nn.Conv2d(1, width, self.stem.kernel_size, stride, self.stem.padding, bias=False)

    def maps(self, x: Tensor) -> list[Tensor]:
        return super().maps(x[:, None])


class AudioVisual(nn.Module):
    """Two towers, one for pictures and one for sound, and a linear map from each into a space that both share.

    Films are (N, F, 3, H, W) and spectrograms (N, T, M), both in [0, 1]. A film's features are the mean of its frames'.
    Both towers' features are `dim` wide; alone in the space of width `shared` do sight and sound compare.
    """

    def __init__(
        self,
        *,
        width: Count = 64,
        blocks: Sequence[Count] = (2, 2, 2, 2),
        stride: Count = 1,
        shared: Count = 128,
    ):
        super().__init__()
        self.eye = ResNet(width=width, blocks=blocks, stride=stride)
        self.ear = SoundResNet(width=width, blocks=blocks, stride=stride)
        self.dim = self.ear.dim
        self.share_video, self.share_sound = nn.Linear(self.dim, shared), nn.Linear(self.dim, shared)

    def video(self, x: Tensor) -> Tensor:
        return self.eye(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)  # (N, D)

    def sound(self, x: Tensor) -> Tensor:
        return self.ear(x)  # (N, D)

    def depths(self, video: Tensor, sound: Tensor) -> dict[str, dict[str, Tensor]]:
        """Of each tower, sound first. What enters the shared space is a depth too, but the features are the last."""
        frames = self.eye.depths(video.flatten(0, 1))
        seen = {depth: h.unflatten(0, video.shape[:2]).mean(1) for depth, h in frames.items()}
        return {
            "sound": with_shared(self.ear.depths(sound), self.share_sound),
            "video": with_shared(seen, self.share_video),
        }

    def forward(self, video: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        return self.share_video(self.video(video)), self.share_sound(self.sound(sound))  # (N, S), (N, S)


class ImageText(nn.Module):
    """Two towers, one for pictures and one for text, and a linear map from each into a space that both share.

    Alone in that space, of width `shared`, do pictures and text compare. `words` is the width of the text tower, and
    `depth` and `heads` are its transformer's; its features are the mean of its tokens.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: Count = 64,
        blocks: Sequence[Count] = (2, 2, 2, 2),
        stride: Count = 1,
        words: Count = 512,
        depth: Count = 12,
        heads: Count = 8,
        shared: Count = 512,
    ):
        super().__init__()
        self.eye = ResNet(width=width, blocks=blocks, stride=stride)
        self.reader = TextTransformer(
            vocabulary=vocabulary, length=length, width=words, depth=depth, heads=heads, dropout=0.0
        )
        self.dim = self.eye.dim
        self.share_image, self.share_text = nn.Linear(self.dim, shared), nn.Linear(words, shared)

    def image(self, x: Tensor) -> Tensor:
        return self.share_image(self.eye(x))  # (N, S)

    def text(self, ids: Tensor) -> Tensor:
        return self.share_text(self.reader(ids))  # (N, S)

    def depths(self, x: Tensor, ids: Tensor) -> dict[str, dict[str, Tensor]]:
        """Of each tower, pictures first. What enters the shared space is a depth too, but the features are the last."""
        return {
            "image": with_shared(self.eye.depths(x), self.share_image),
            "text": with_shared(self.reader.depths(ids), self.share_text),
        }

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(x), self.text(ids)  # (N, S), (N, S)


def with_shared(depths: dict[str, Tensor], share: nn.Module) -> dict[str, Tensor]:
    """A tower's depths, and before the last what enters the space that it shares with another."""
    *earlier, (last, h) = depths.items()
    return dict([*earlier, ("shared", share(h)), (last, h)])
