"""Pretrains one entry of the table with one seed.   python -m stages.pretrain image simclr --seed 0

data/<modality>/train
    -> models/<modality>/<entry>/<seed>/{encoder.safetensors, status.json}
    -> metrics/<modality>/<entry>/<seed>/pretrain.json (what it cost, and how it went)
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import ssl_methods
from ssl_methods import Method
from ssl_methods.parts import averaged, processes

from . import checkpoint, cost, devices, distributed, plan
from .columns import Columns, facts_of, manifest
from .command import command
from .files import write_json
from .optimizers import optimizer_of, pace
from .panels import panel, sentences, views
from .progress import Progress
from .settings import Entry, InputError, Training

CHECKPOINT_SECONDS = 30.0
POINTS = 100  # on a loss curve
HELD_OUT_BATCHES = 16
STILL = 20  # steps without the least change of the loss, after which it is dead

Log = Callable[..., None]  # log(step, **numbers)


@dataclass
class Trained:
    """How a pretraining ended. A failure is a result: `diverged`, at a step, for a cause."""

    method: Method
    status: str = "ok"
    step: int | None = None
    cause: str | None = None
    seconds: float = 0.0  # of training alone, over all interruptions
    samples: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


def train(entry: Entry, folder: Path, seed: int, *, log: Log | None = None, keep: Path | None = None) -> Trained:
    """Pretrains an entry on the train split in `folder`. With `keep`, a folder, it can be interrupted and resumed, and
    SIGTERM ends it after the step, with a checkpoint, by KeyboardInterrupt.

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
    devices.leave_compiler_out()
    method = build_method(entry, facts_of(data), seed)
    columns = Columns(folder / "train", kind.columns, device)
    method.to(device, memory_format=torch.channels_last).train()
    if not epochs:
        return Trained(method.eval())
    steps = max(1, round(epochs * rows / batch_size))
    label = f"{entry.name} {seed}"
    with distributed.group(device), checkpoint.patient() if keep else nullcontext():
        return fit(method, columns, entry.training, steps=steps, seed=seed, label=label, log=log, keep=keep)


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
    label: str,
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
            print(f"{label}: resumed at step {first} of {steps}", flush=True)
    for point in trained.curve if log else ():
        log(**point)  # the tracker passes over what it has

    counted = (first - len(waiting)) * training.batch_size
    bar = Progress(label, steps * training.batch_size, "samples", counted, shown=rank == 0)
    began = saved = time.monotonic() - trained.seconds
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
        trained.seconds, trained.samples = time.monotonic() - began, (step + 1) * training.batch_size
        if point:
            values, waiting = averaged(torch.stack(waiting)).cpu(), []  # (steps since the last point, numbers)
            recent = torch.cat([recent, values[:, 0]])[-max(STILL, every) :]
            if fault := fault_in(recent, step + 1, loss.requires_grad):
                trained.status, (trained.step, trained.cause) = "diverged", fault
                break
            numbers = dict(zip(["loss", *extras], values.mean(0).tolist(), strict=True))
            trained.curve.append({"step": step + 1, "samples": trained.samples, **numbers, "lr": rate})
            if log:
                log(**trained.curve[-1])
            bar.advance(len(values) * training.batch_size, loss=numbers["loss"])
        if keep and step + 1 < steps and (asked or late):
            state = {"step": step + 1, "curve": trained.curve, "seconds": trained.seconds}
            state |= {"recent": recent, "waiting": waiting}
            checkpoint.save(keep, device, method=method.state_dict(), optimizer=optimizer.state_dict(), **state)
            saved = time.monotonic()
        if asked:
            break
    bar.close()
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


def write(trained: Trained, folder: Path) -> None:
    """Writes the frozen encoder and how its training ended, in bytes that do not depend on the time it took."""
    status = {"status": trained.status, "step": trained.step, "cause": trained.cause}
    folder.mkdir(parents=True, exist_ok=True)
    if trained.status == "ok":
        weights = {name: tensor.contiguous().cpu() for name, tensor in trained.method.encoder.state_dict().items()}
        save_file(weights, folder / "encoder.safetensors")
    write_json(folder / "status.json", status)


def record(trained: Trained, entry: Entry, folder: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """What a pretraining on the data in `folder` cost and how it went, for the report."""
    device, done = devices.choose(entry.training.device), trained.status == "ok"
    return {
        "status": trained.status,
        "step": trained.step,
        "cause": trained.cause,
        "loss": trained.curve[-1]["loss"] if trained.curve else None,
        "seconds": round(trained.seconds, 2),
        "samples": trained.samples,
        "samples_per_second": round(trained.samples / trained.seconds, 1) if trained.seconds else None,
        "encoder_parameters": count(trained.method.encoder),
        "method_parameters": count(trained.method),
        "multiply_adds": work(trained.method, folder, device, entry.training.batch_size) if done else None,
        "peak_memory_mb": round(devices.peak_memory_mb(device), 1),
        "held_out": held_out(trained.method, folder, device, entry.training.batch_size) if done else {},
        "panel": panel(trained.method, folder, device) if done else None,
        "views": views(trained.method, folder, device, entry.training.batch_size) if done else None,
        "said": sentences(trained.method, folder) if done else [],
        "provenance": provenance,
        "curve": [{key: float(f"{value:.5g}") for key, value in point.items()} for point in trained.curve],
    }


def held_out(method: Method, folder: Path, device: torch.device, batch_size: int) -> dict[str, float]:
    """How well a trained method does its own task on validation data: its loss, and what else it plots, on average.

    Nothing where it takes no steps, or where validation data do not fill a batch.
    """
    if not method.columns:
        return {}
    columns = Columns(folder / "validation", method.columns, device)
    torch.manual_seed(0)  # for views and masks: the same in every run
    found = []
    for step in range(min(len(columns) // batch_size, HELD_OUT_BATCHES)):
        with torch.inference_mode():
            loss, extras = method(columns.batch(step, batch_size, seed=0))
        found.append(torch.stack([loss, *extras.values()]))
    means = torch.stack(found).mean(0).tolist() if found else []
    return {name: float(f"{mean:.5g}") for name, mean in zip(["loss", *extras], means, strict=True)} if found else {}


def work(method: Method, folder: Path, device: torch.device, batch_size: int) -> int | None:
    """Multiply-adds of the method's forward pass per sample; None where it takes no steps."""
    if not method.columns:
        return None
    columns = Columns(folder / "validation", method.columns, device)
    size = min(batch_size, len(columns))
    batch = columns.batch(0, size, seed=0)
    with torch.no_grad():
        return cost.multiply_adds(lambda: method(batch), size)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modality")
    parser.add_argument("entry")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.time()

    planned = plan.lookup("pretrain", given.modality, given.entry)
    entry = Entry(modality=given.modality, name=given.entry, **{k: v for k, v in planned.items() if k != "code"})
    if entry.training.processes > 1 and distributed.started() == 1:
        distributed.launch(entry.training.processes, "stages.pretrain")
        return
    folder = Path("data", given.modality)
    place = Path(given.modality, given.entry, str(given.seed))
    device = devices.choose(entry.training.device)
    precision = devices.choose_precision(entry.training.precision, device)
    provenance = devices.provenance(planned, manifest(folder), device, precision)
    name, key = "-".join(["pretrain", *place.parts]), devices.key_of([str(place), planned, provenance])
    if distributed.rank():  # the first alone writes anything
        train(entry, folder, given.seed, keep=checkpoint.folder_of(name, key))
        return

    from . import tracking  # here, so that what only watches is no part of what a result depends on

    tags = {"family": entry.family, "method": entry.method}
    with (
        checkpoint.scratch(name, key) as keep,
        tracking.start(
            "pretrain", modality=given.modality, name=given.entry, seed=given.seed, params=planned, tags=tags, key=key
        ) as run,
    ):
        trained = train(entry, folder, given.seed, log=run.log, keep=keep)
        result = record(trained, entry, folder, provenance) | {"clock": [round(began), round(time.time())]}
        write(trained, "models" / place)
        write_json("metrics" / place / "pretrain.json", result)
        if result["panel"]:
            run.picture("panel.webp", result["panel"]["webp"])
        run.finish(trained.status, seconds=result["seconds"], samples_per_second=result["samples_per_second"])
    ended = trained.status if trained.status == "ok" else f"{trained.status} at step {trained.step}: {trained.cause}"
    print(f"{given.entry} {given.seed}: {ended}, {trained.seconds:.0f} s")


if __name__ == "__main__":
    command(main)
