"""One run on several processes, each with a part of every batch: a GPU each, or some cores.

With `processes: 2` in a training profile, `python -m stages.pretrain` starts two for every seed (children.py).
The profile's batch is that of all processes together, and what spans it stays whole: negatives, queues and statistics
go through `ssl_methods.parts`, batch normalisation through what is here, and gradients are averaged by torch's
DistributedDataParallel. Views and masks are drawn by each process for itself, so a run on two is another run than on
one, as under another seed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_methods.parts.processes import agreed, averaged, processes

from ..common.settings import InputError


def started() -> int:
    """How many processes share this run, as whoever started them says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Within it, the processes that were started know of each other. Nothing for one alone."""
    if started() == 1:
        yield
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process, where several share a machine's; the CPU is everyone's."""
    if started() == 1 or device.type != "cuda":
        return device
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(own)
    return own


def check(batch_size: int, expected: int, name: str) -> None:
    """Raises InputError where the processes are not those of the profile, or cannot share a batch evenly."""
    if started() not in (1, expected):
        raise InputError(
            f"{started()} processes were started, but the training profile of {name} says `processes: {expected}`; "
            "set it there, as results depend on it"
        )
    if batch_size % started() or batch_size // started() < 2:
        raise InputError(
            f"batch_size {batch_size} of {name} cannot be shared by {started()} processes; choose a multiple of "
            f"{started()}, with two rows or more for each"
        )


def share(method: nn.Module) -> nn.Module:
    """The method, called with a part of the batch, as if it had all of it. Itself on one process."""
    if processes() == 1:
        return method
    synchronise(method)
    if not any(p.requires_grad for p in method.parameters()):
        return method  # it counts, and gathers what it counts
    return DistributedDataParallel(method, broadcast_buffers=False, find_unused_parameters=True)


def synchronise(module: nn.Module) -> None:
    """Gives every batch-norm in a module the statistics of all processes."""
    for child in module.modules():
        if type(child) in GLOBAL:
            child.__class__ = GLOBAL[type(child)]  # keeps weights, buffers and their names


class _Global:
    """Batch normalisation over all processes, which have as many rows each, with gradients through its statistics.

    torch.nn.SyncBatchNorm is for GPUs alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or processes() == 1:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = averaged(wide.mean(axes))  # (C,)
        centred = wide - mean.view(shape)
        variance = averaged(centred.square().mean(axes))  # (C,)
        with torch.no_grad():
            rows = processes() * x.numel() // x.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * rows / (rows - 1), self.momentum)
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


class GlobalBatchNorm1d(_Global, nn.BatchNorm1d):
    pass


class GlobalBatchNorm2d(_Global, nn.BatchNorm2d):
    pass


GLOBAL = {nn.BatchNorm1d: GlobalBatchNorm1d, nn.BatchNorm2d: GlobalBatchNorm2d}


def own_stream(seed: int) -> None:
    """Random numbers of its own for every process but the first, which keeps its own."""
    if rank() and processes() > 1:
        torch.manual_seed((seed + 1) * 1_000_003 + rank())


def agree(answers: list[bool], device: torch.device) -> list[bool]:
    """The first process's answers."""
    return agreed(torch.tensor(answers, device=device)).tolist() if processes() > 1 else answers
