"""Fine-tuning: the encoder and a linear head, trained end to end on all labels. What pretraining is worth as a start.

Every encoder has the same recipe, so that the untrained one is the network trained from scratch. The head is a linear
map that starts at zero, on features that batch normalisation brings to one scale, as in MAE's probe (He et al. 2022,
appendix A.1, https://arxiv.org/abs/2111.06377): else the step that suits an encoder would depend on its scale. Inputs
are taken as they are, for augmentation that is right for one modality has no counterpart in another; and in a few
epochs, it would rather tell which encoder knew it already.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.settings import FineTuning
from ..training.optimizers import optimizer_of, pace
from . import accuracy, best

Batch = dict[str, Tensor]


class Examples(NamedTuple):
    """What is trained or tested on."""

    batch: Callable[[Tensor], Batch]  # those at the places (n,), a CPU tensor with values below N
    labels: Tensor  # (N,) int64, on the device


class Tunable(nn.Module):
    """An encoder with a head. `features` is how a batch goes through the encoder, to (N, D); `frozen` (M, D) is what
    the encoder makes of train before it is tuned, from which the norm takes its first mean and variance.
    """

    def __init__(
        self, encoder: nn.Module, features: Callable[[nn.Module, Batch], Tensor], frozen: Tensor, classes: int
    ):
        super().__init__()
        self.encoder, self.features = encoder, features
        self.norm = nn.BatchNorm1d(frozen.shape[1], affine=False, eps=1e-10)  # small, so that features may be
        self.norm.running_mean.copy_(frozen.mean(0))
        self.norm.running_var.copy_(frozen.var(0))
        self.head = nn.Linear(frozen.shape[1], classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.norm(self.features(self.encoder, batch).float())).float()  # (N, C)


@dataclass(frozen=True)
class Tuned:
    """A network at the epoch that validation prefers, the first of equals. Accuracies are in percent."""

    network: Tunable
    epoch: int
    curve: dict[int, float]  # validation accuracy after each epoch, from 1


def tune(
    encoder: nn.Module,
    features: Callable[[nn.Module, Batch], Tensor],
    train: Examples,
    validation: Examples,
    *,
    recipe: FineTuning,
    frozen: Tensor,
    classes: int,
    precision: torch.dtype,
    block: int,
    advance: Callable[[float], None],
) -> Tuned | None:
    """Trains a copy of the encoder, whose features of train are `frozen` (N, D); None where it has no weight to train.

    The seed is always 0: runs differ by their encoders alone. Every epoch has a new order, and drops its ragged end;
    `block` rows are predicted at a time, and `advance` is told the share that is done after every epoch.
    """
    if not any(weight.requires_grad for weight in encoder.parameters()):
        return None
    torch.manual_seed(0)  # for dropout
    device = train.labels.device
    network = Tunable(copy.deepcopy(encoder), features, frozen, classes).to(device, memory_format=torch.channels_last)
    optimizer = optimizer_of(network, recipe)
    size = min(recipe.batch_size, len(train.labels))
    steps = len(train.labels) // size  # of an epoch
    curve = {}
    for epoch in range(recipe.epochs):
        network.train()
        order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(epoch))
        for step, places in enumerate(order.split(size)[:steps]):
            rate = recipe.lr * pace((epoch + step / steps) / recipe.epochs, recipe.warmup)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
                scores = network(train.batch(places))
            optimizer.zero_grad()
            F.cross_entropy(scores, train.labels[places.to(device)]).backward()
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        curve[epoch + 1] = score(network, validation, block)
        if best(curve) == epoch + 1:
            kept = copy.deepcopy(network.state_dict())
        advance((epoch + 1) / recipe.epochs)
    network.load_state_dict(kept)
    return Tuned(network, best(curve), curve)


def score(network: Tunable, examples: Examples, block: int) -> float:
    """The accuracy on the examples, in percent."""
    network.eval()
    with torch.inference_mode():
        places = torch.arange(len(examples.labels)).split(block)
        predicted = torch.cat([network(examples.batch(index)).argmax(1) for index in places])
    return accuracy(predicted, examples.labels)
