"""Optimizers by name, and the learning rate's course."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..common.settings import Training


class LARS(torch.optim.Optimizer):
    """SGD with momentum, whose step on each weight is scaled to the weight's own norm.

    You, Gitman, Ginsburg. Large Batch Training of Convolutional Networks. 2017. https://arxiv.org/abs/1708.03888

        v <- momentum v + lr trust |w| / |g + decay w| (g + decay w),   w <- w - v          Algorithm 1

    Departs from the paper, as SimCLR's code does: below is the norm of the sum, not the sum of the norms. Biases and
    norms (one dimension) take plain steps, as in SimCLR and BYOL.
    """

    def __init__(self, params: Iterable, lr: float, weight_decay: float, momentum: float, trust: float = 1e-3):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                update = w.grad + group["weight_decay"] * w
                if w.ndim > 1:
                    ratio = group["trust"] * w.norm() / update.norm()
                    update *= torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0)
                v = self.state[w].setdefault("v", torch.zeros_like(w))
                v.mul_(group["momentum"]).add_(update, alpha=group["lr"])
                w -= v


def optimizer_of(method: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer that a training profile names. Weights decay; biases and norms (one dimension) do not."""
    trained = [p for p in method.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=training.lr, betas=(training.beta1, 0.999), fused=fusible(trained))
    if training.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=training.lr, momentum=training.beta1, fused=fusible(trained))
        for (
            weight
        ) in trained:  # else weights that learn later than others, as SwAV's prototypes do, stop the fused kernel
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return optimizer
    return LARS(groups, lr=training.lr, momentum=training.beta1, weight_decay=training.weight_decay)


def fusible(parameters: list[Tensor]) -> bool:
    """Whether one kernel can update all parameters: on every device that trains, but not on the tests' meta device."""
    return all(p.device.type != "meta" for p in parameters)


def pace(progress: float, warmup: float) -> float:
    """The learning rate's share at `progress` in [0, 1): a linear rise to 1 at `warmup`, then half a cosine to 0.

    Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983
    """
    if progress < warmup:
        return progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
