"""The one training loop. It knows nothing of pictures, text, teachers or queues."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ssl_methods
from ssl_methods import Method
from ssl_methods.parts.processes import averaged, processes

from ..common.settings import Entry, InputError, Training
from . import checkpoint, devices, distributed
from .columns import Columns, facts_of, manifest
from .optimizers import optimizer_of, pace

CHECKPOINT_SECONDS = 30.0
POINTS = 100  # on a loss curve
STILL = 20  # steps without the least change of the loss, after which it is dead

Log = Callable[..., None]  # log(share, step, samples, loss, **numbers)


@dataclass
class Trained:
    """How a pretraining ended. A failure is a result: `diverged`, at a step, for a cause."""

    method: Method
    status: str = "ok"
    step: int | None = None
    cause: str | None = None
    seconds: float = 0.0  # of training alone, over all interruptions and processes; see `devices.clock`
    samples: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


def train(entry: Entry, folder: Path, seed: int, *, log: Log | None = None, keep: Path | None = None) -> Trained:
    """Pretrains an entry on the train split in `folder`; logs each point of its curve, with the `share` done so far.

    With `keep`, a folder, it can be interrupted and resumed, and SIGTERM ends it after the step, with a checkpoint, by
    KeyboardInterrupt.

    Raises InputError for what does not fit: a device that is missing, a batch larger than the data, a method that needs
    labels where there are none.
    """
    data, kind = manifest(folder), ssl_methods.load(entry.method)
    device = distributed.own_device(devices.choose(entry.training.device))
    rows, batch_size = data["splits"]["train"]["rows"], entry.training.batch_size
    epochs = entry.training.epochs if kind.passes is None else kind.passes
    if epochs and batch_size > rows:
        raise InputError(
            f"batch_size {batch_size} of {entry.name} is larger than the data: "
            f"{data['data']} has {rows} rows to train on; choose at most that in the training profile"
        )
    distributed.check(batch_size, entry.training.processes, entry.name)
    if "label" in kind.columns and not data["classes"]:
        raise InputError(
            f"{entry.name} needs labels, and {data['data']} has none; take it out of benchmark.{entry.modality}.methods"
        )
    devices.keep_freed_memory()
    method = build_method(entry, facts_of(data), seed)
    columns = Columns(folder / "train", kind.columns, device)
    method.to(device, memory_format=torch.channels_last).train()
    if not epochs:
        return Trained(method.eval())
    steps = max(1, round(epochs * rows / batch_size))
    with distributed.group(device), checkpoint.patient() if keep else nullcontext():
        return fit(method, columns, entry.training, steps=steps, seed=seed, log=log, keep=keep)


def build_method(entry: Entry, facts: dict[str, Any], seed: int) -> Method:
    """The method around its encoder, freshly initialised from the seed."""
    torch.manual_seed(seed)
    try:
        encoder = ssl_methods.build_encoder(entry.encoder, facts)
        return ssl_methods.build(ssl_methods.load(entry.method), encoder, settings=entry.hyper, facts=facts)
    except (
        ValueError,
        AttributeError,
    ) as error:  # a size that does not divide, or an encoder that lacks what is needed
        raise InputError(
            f"methods.{entry.name}: {entry.method} cannot use the encoder {entry.encoder['name']!r}: {error}"
        ) from None


def fit(
    method: Method,
    columns: Columns,
    training: Training,
    *,
    steps: int,
    seed: int,
    log: Log | None = None,
    keep: Path | None = None,
) -> Trained:
    """The one training loop. It knows nothing of pictures, text, teachers or queues.

    Numbers stay on the device until a point of the curve is due, so the device never waits for the host in between.
    Of several processes, each takes its part of the batch, and the first alone logs and keeps.
    """
    rank, device = distributed.rank(), columns.device
    optimizer = optimizer_of(method, training)
    precision = devices.choose_precision(training.precision, device)
    forward = distributed.share(method)
    forward = torch.compile(forward) if training.compile else forward
    distributed.own_stream(seed)
    trained, first = Trained(method), 0
    every, waiting, recent = max(1, steps // POINTS), [], torch.empty(0)
    if keep and (state := checkpoint.restore(keep, device)):
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        first, trained.curve, trained.seconds = state["step"], state["curve"], state["seconds"]
        recent, waiting = state["recent"].cpu(), list(state["waiting"])
        if rank == 0:
            print(f"seed {seed}: resumed at step {first} of {steps}", flush=True)
    for point in trained.curve if log else ():
        log(share=point["step"] / steps, **point)

    clock = devices.clock(device)
    began, saved = clock() - trained.seconds / processes(), time.monotonic()
    for step in range(first, steps):
        method.progress = step / steps
        rate = training.lr * pace(method.progress, training.warmup)
        batch = columns.batch(step, training.batch_size, seed, rank, processes())
        with torch.autocast(device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
            loss, extras = forward(batch)
        descend(optimizer, loss, rate, training.clip)
        method.progress = (step + 1) / steps
        method.after_step()

        waiting.append(torch.stack([loss.detach(), *extras.values()]))
        point = (step + 1) % every == 0 or step + 1 == steps  # when several processes wait for each other anyway
        asked = late = False
        if point or processes() == 1:
            known = [checkpoint.ASKED.is_set(), time.monotonic() - saved >= CHECKPOINT_SECONDS]
            asked, late = distributed.agree(known, device)
        if not point and not asked:
            continue
        trained.seconds, trained.samples = (clock() - began) * processes(), (step + 1) * training.batch_size
        if point:
            values, waiting = averaged(torch.stack(waiting)).cpu(), []  # (steps since the last point, numbers)
            recent = torch.cat([recent, values[:, 0]])[-max(STILL, every) :]
            if fault := fault_in(recent, step + 1, loss.requires_grad):
                trained.status, (trained.step, trained.cause) = "diverged", fault
                break
            numbers = dict(zip(["loss", *extras], values.mean(0).tolist(), strict=True))
            trained.curve.append({"step": step + 1, "samples": trained.samples, **numbers, "lr": rate})
            if log:
                log(share=method.progress, **trained.curve[-1])
        if keep and step + 1 < steps and (asked or late):
            state = {"step": step + 1, "curve": trained.curve, "seconds": trained.seconds}
            state |= {"recent": recent, "waiting": waiting}
            checkpoint.save(keep, device, method=method.state_dict(), optimizer=optimizer.state_dict(), **state)
            saved = time.monotonic()
        if asked:
            break
    method.eval()
    return trained


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, clip: float | None) -> None:
    """One step down the gradient, at that learning rate. A loss without a gradient (PCA's) moves nothing."""
    if not loss.requires_grad:
        return
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
    if clip is not None:
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()


def fault_in(losses: Tensor, last: int, moves: bool) -> tuple[int, str] | None:
    """The step and cause of the first loss that is not a number, or of a loss that has stopped moving at all.

    `losses` are those of the latest steps, up to step number `last`; `moves`: whether they have a gradient.
    """
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        first = int(bad[0])
        return last - len(losses) + 1 + first, f"the loss is {losses[first].item()}"
    if moves and len(losses) >= STILL and (losses == losses[0]).all():
        return last, f"the loss has not moved for {len(losses)} steps"
    return None
