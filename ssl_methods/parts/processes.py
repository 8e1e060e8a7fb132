"""Training on several processes: what spans the batch (negatives, statistics, queues) spans all of them."""

import torch
from torch import Tensor


def processes() -> int:
    """How many processes train together."""
    alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
    return 1 if alone else torch.distributed.get_world_size()


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
