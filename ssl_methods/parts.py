"""What several methods are made of: heads, teachers, queues, and what spans the batch."""

import copy
import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(inputs: int, hidden: int, outputs: int, *, layers: int = 2, norm_last: bool = False) -> nn.Sequential:
    """A projector or predictor: linear layers with batch-norm and ReLU between them, (N, inputs) -> (N, outputs)."""
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    modules: list[nn.Module] = []
    for i in range(layers):
        modules.append(nn.Linear(widths[i], widths[i + 1], bias=False))
        if i < layers - 1:
            modules += [nn.BatchNorm1d(widths[i + 1]), nn.ReLU(inplace=True)]
    if norm_last:
        modules.append(nn.BatchNorm1d(outputs, affine=False))
    return nn.Sequential(*modules)


class Decoder(nn.Module):
    """Features (N, D) to pictures (N, 3, size, size): from 4 x 4, doubled with a convolution each time.

    The last doubling is a sub-pixel convolution, a quarter of the price: Shi et al. 2016,
    https://arxiv.org/abs/1609.05158
    """

    def __init__(self, dim: int, width: int, size: int):
        super().__init__()
        self.size = size
        self.first = nn.Linear(dim, width * 16)
        stages, side = [], 4
        while 2 * side < size:
            half = max(width // 2, 16)
            stages += [nn.Upsample(scale_factor=2), nn.Conv2d(width, half, 3, padding=1, bias=False)]
            stages += [nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
            width, side = half, side * 2
        self.stages = nn.Sequential(*stages)
        self.last = nn.Conv2d(width, 3 * 2**2, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.last(self.stages(self.first(h).unflatten(1, (-1, 4, 4)))), 2)
        return x[..., : self.size, : self.size]  # (N, 3, H, W)


def teacher_of(student: nn.Module) -> nn.Module:
    """A copy that no gradient moves; `follow` does."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter.

    Batch-norm statistics are not averaged: a teacher gathers its own in its own passes.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


@torch.no_grad()
def enqueue(queue: Tensor, keys: Tensor) -> None:
    """First in, first out: the keys (..., N, D) enter the queue (..., K, D), and as many of the oldest leave.

    For one queue on many processes, gather the keys first.
    """
    newest = torch.cat([keys.to(queue.dtype), queue], dim=-2)
    queue.copy_(newest[..., : queue.shape[-2], :])


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, (N, D) -> (all N, D), with gradients; on one process, `x` itself.

    Whatever spans the batch (negatives, queues, statistics) goes through here.
    """
    return x if processes() == 1 else _Gathered.apply(x)


class _Gathered(torch.autograd.Function):
    """A row moves the losses of all processes, so its gradient is the sum of all theirs."""

    @staticmethod
    def forward(ctx, x):
        rows = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(processes())]
        torch.distributed.all_gather(rows, x.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx, gradient):
        return _summed(gradient).chunk(processes())[torch.distributed.get_rank()]


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return _summed(x)

    @staticmethod
    def backward(ctx, gradient):
        return _summed(gradient)


def _summed(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total


def processes() -> int:
    """How many processes train together."""
    alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
    return 1 if alone else torch.distributed.get_world_size()


def all_rows(x: Tensor) -> int:
    """How many rows (N, ...) all processes have together."""
    return processes() * len(x)


def places_of(x: Tensor) -> Tensor:
    """Where this process's rows (N, ...) stand among those of all, as `gather` puts them: (N,)."""
    first = torch.distributed.get_rank() * len(x) if processes() > 1 else 0
    return torch.arange(first, first + len(x), device=x.device)


def averaged(x: Tensor) -> Tensor:
    """The mean of `x` over all processes, with gradients; on one process, `x` itself."""
    return x if processes() == 1 else _Summed.apply(x) / processes()


def agreed(x: Tensor) -> Tensor:
    """The first process's `x`, for random numbers that all must share."""
    if processes() > 1:
        torch.distributed.broadcast(x, 0)
    return x


def in_float32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Computes a loss in float32, whatever precision the networks before it run in."""

    @functools.wraps(loss)
    def exact(*arguments, **settings):
        floats = [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
        device = floats[0].device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return loss(*floats, **settings)

    return exact


def masked_mean(error: Tensor, counts: Tensor) -> Tensor:
    """The mean of `error` (...) over the places where `counts` (...) is true, or 1; 0 where there are none.

    On several processes, their mean is that of all places.
    """
    return (error * counts).sum() / averaged(counts.sum()).clamp(min=1 / processes())


@in_float32
def info_nce(q: Tensor, k: Tensor, temperature: float, among: Tensor | None = None) -> Tensor:
    """Each query must find its own key among all keys of the batch: q, k (N, D), not yet normalised.

        - log  exp(q_i . k_i / T) / sum_j exp(q_i . k_j / T)               with the cosine similarity

    With groups `among` (N,), j runs over the query's own group alone.

    van den Oord, Li, Vinyals. Representation Learning with Contrastive Predictive Coding. 2018.
    https://arxiv.org/abs/1807.03748
    """
    s = F.normalize(gather(q), dim=1) @ F.normalize(gather(k), dim=1).T / temperature  # (N, N)
    if among is not None:
        group = gather(among)
        s = s.masked_fill(group[:, None] != group, -torch.inf)
    return F.cross_entropy(s, torch.arange(len(s), device=s.device))


class CrossEntropy(torch.autograd.Function):
    """- log softmax(logits) at the target, (M, V), (M,) -> (M,), in float32: what F.cross_entropy says, for a CPU.

    It takes half of the time there: some rows at once, which stay in the core's cache from one operation to the next,
    and the gradient, which is the softmax but for the target, in the same pass.
    """

    BLOCK = 2**17  # logits

    @staticmethod
    def forward(context, logits, target):
        few = max(1, CrossEntropy.BLOCK // logits.shape[1])
        found, slope = [], torch.empty_like(logits)
        for rows, at, down in zip(*(x.split(few) for x in (logits, target[:, None], slope)), strict=True):
            p = rows.float().log_softmax(1)
            told = p.gather(1, at)
            down.copy_(p.exp_().scatter_(1, at, told.expm1()))  # p, but p - 1 at the target
            found.append(told[:, 0].neg_())
        context.save_for_backward(slope)
        return torch.cat(found)

    @staticmethod
    def backward(context, above):
        (slope,) = context.saved_tensors
        return slope * above[:, None].to(slope.dtype), None


def counted(counts: Tensor, *values: Tensor) -> list[Tensor]:
    """In rows, and most of what does not count left out: counts (N, M), values (N, M, ...) -> (T,), (T, ...).

    T is a multiple of 64, for a CPU prepares anew for each size of a matrix. Elsewhere it is N * M, and nothing is left
    out: to know how many count is to wait for the device.
    """
    rows = [x.flatten(0, 1) for x in (counts, *values)]
    if counts.device.type != "cpu":
        return rows
    most = -(-int(counts.sum()) // 64) * 64
    places = rows[0].byte().argsort(descending=True, stable=True)[:most]
    return [x.index_select(0, places) for x in rows]


def token_loss(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """The cross-entropy of tokens, averaged over the places that count. (..., V), (...), (...)."""
    logits, target = logits.flatten(0, -2), target.flatten().long()
    if logits.device.type == "cpu":
        cross = CrossEntropy.apply(logits, target)
    else:
        cross = F.cross_entropy(logits.float(), target, reduction="none")
    return masked_mean(cross.view_as(counts), counts)


def token_accuracy(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """The share of the places that count where no token is likelier than the right one. (..., V), (...), (...)."""
    most = logits.amax(-1)  # to ask which token it is takes five to ten times as long on a CPU
    return masked_mean((logits.gather(-1, target.long()[..., None])[..., 0] == most).float(), counts)


@in_float32
def labelled_loss(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy with the labels and the share told right, over the rows that have one. (N, C), (N,)

    Rows with label -1 do not count; both are 0 where there is no other.
    """
    count = averaged((y >= 0).sum()).clamp(min=1 / processes())
    loss = F.cross_entropy(logits, y, ignore_index=-1, reduction="sum")
    return loss / count, (logits.argmax(1) == y).sum() / count


class TokenHead(nn.Module):
    """Which word stands at a place, from the features of its token, with the embeddings as weights, as in BERT."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, h: Tensor, embeddings: Tensor) -> Tensor:
        """(..., D), (V, D) -> (..., V)"""
        return F.linear(self.transform(h), embeddings, self.bias)


class OrderHead(nn.Module):
    """Whether the second sentence of a pair follows the first, from the mean of each one's tokens.

    The two are compared as in InferSent, by (u * v, |u - v|), through one hidden layer: Conneau et al. 2017, figure 1,
    https://arxiv.org/abs/1705.02364
    """

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1)
        )

    def forward(self, u: Tensor, v: Tensor, follows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the share that is told right. (N, D), (N, D), (N,), (N,)"""
        logits = self.layers(torch.cat([u * v, (u - v).abs()], dim=1))[:, 0].float()  # (N,)
        loss = F.binary_cross_entropy_with_logits(logits, follows.float(), reduction="none")
        return masked_mean(loss, counts), masked_mean(((logits > 0) == follows).float(), counts)


class Unigram(nn.Module):
    """How often each token has been seen in training: what there is to know without looking at its neighbours."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.register_buffer("counts", torch.ones(vocabulary))

    @torch.no_grad()
    def add(self, ids: Tensor) -> None:
        """The tokens (N, L) of all processes, but for the padding."""
        ids = gather(ids).flatten().long()
        self.counts.index_add_(0, ids, (ids > 0).to(self.counts.dtype))

    @torch.no_grad()
    def loss(self, target: Tensor, counts: Tensor) -> Tensor:
        """`token_loss` of the same tokens, were each told from its frequency alone."""
        return masked_mean((self.counts.sum() / self.counts).log()[target.long()], counts)


def spread(z: Tensor) -> Tensor:
    """The mean deviation of normalised features, times sqrt(D): 1 when they fill the sphere, 0 when they collapse.

    Chen and He 2021, section 4.1.
    """
    z = F.normalize(z.detach().float(), dim=1)  # (N, D)
    return z.std(0).mean() * z.shape[1] ** 0.5


def covariance(z: Tensor) -> Tensor:
    """Of the features z (N, D), over N - 1: (D, D). Unlike `torch.cov`, it never waits for the device."""
    z = z - z.mean(0)
    return z.T @ z / (len(z) - 1)


class Moments(nn.Module):
    """The mean and the covariance of rows that come in batches, kept in float64."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(width, width, dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """Rows (N, D)."""
        x = x.double()
        self.count += len(x)
        self.total += x.sum(0)
        self.products += x.T @ x

    def mean(self) -> Tensor:
        return self.total / self.count  # (D,)

    def covariance(self) -> Tensor:
        """Over the number of rows: (D, D)."""
        mean = self.mean()
        return self.products / self.count - mean.outer(mean)


@in_float32
def swapped(targets: Tensor, logits: Tensor) -> Tensor:
    """The cross-entropy of every view with the target of every *other* view, averaged over these pairs and the batch.

    targets: (G, N, K), distributions for the first G views; logits: (V, N, K), of all V views.
    """
    cross = -torch.einsum("gnk,vnk->gv", targets, logits.log_softmax(-1)) / logits.shape[1]  # (G, V)
    return (cross.sum() - cross.diagonal().sum()) / (cross.numel() - len(targets))


def shapes_of_maps(encoder: nn.Module, size: int) -> list[tuple[int, int]]:
    """Width and side of each of the encoder's `maps` of pictures of that size; the encoder itself is left as it is."""
    sketch = copy.deepcopy(encoder).to("meta").eval()  # shapes without numbers
    return [(m.shape[1], m.shape[2]) for m in sketch.maps(torch.empty(1, 3, size, size, device="meta"))]


def held(module: nn.Module, *inputs: Tensor) -> Tensor:
    """module(*inputs), with gradients to the inputs alone: the module stands still while others learn from it."""
    constants = {name: p.detach() for name, p in module.named_parameters()}
    return torch.func.functional_call(module, constants, inputs)
