"""Networks that no gradient moves, and the queues that they fill."""

import copy

import torch
from torch import Tensor, nn


def teacher_of(student: nn.Module) -> nn.Module:
    """A copy that no gradient moves; `follow` does."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter.

    Batch-norm statistics are not averaged: a teacher gathers its own in its own passes.
    """
    for slow, quick in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(quick, 1 - momentum)


@torch.no_grad()
def enqueue(queue: Tensor, keys: Tensor) -> None:
    """First in, first out: the keys (..., N, D) enter the queue (..., K, D), and as many of the oldest leave.

    For one queue on many processes, gather the keys first.
    """
    newest = torch.cat([keys.to(queue.dtype), queue], dim=-2)
    queue.copy_(newest[..., : queue.shape[-2], :])


def held(module: nn.Module, *inputs: Tensor) -> Tensor:
    """module(*inputs), with gradients to the inputs alone: the module stands still while others learn from it."""
    constants = {name: p.detach() for name, p in module.named_parameters()}
    return torch.func.functional_call(module, constants, inputs)
