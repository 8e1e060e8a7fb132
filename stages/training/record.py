"""What a pretraining leaves behind: its encoder, how it ended, what it cost, what it draws."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ssl_methods import Method

from ..common.files import write_json
from ..common.settings import Entry
from . import cost, devices
from .columns import Columns
from .loop import Trained
from .panels import panel, sentences, views

HELD_OUT_BATCHES = 16


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
