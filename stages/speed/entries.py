"""How fast each entry of the table trains, and how near that is to what the device can do at most."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ssl_methods

from ..common.settings import Entry, Settings
from ..training import devices
from .timing import TURNS, quickest, race, steps_within
from .trainer import Trainer, in_products, profile

# Encoders so wide that arithmetic is what a step is made of: what it then reaches of the limit.
WIDE = {
    "simclr": {"name": "width 512", "architecture": "ResNet", "width": 512, "blocks": [1, 1], "stride": 4},
    "simmim": {"name": "width 2048", "architecture": "ViT", "patch": 4, "width": 2048, "depth": 3, "heads": 32},
}


def limit(device: torch.device, seconds: float) -> dict[str, float]:
    """The most multiply-adds a second (in 1e12) of a matrix product in each precision that training uses, and bytes a
    second (in 1e9) of a copy, which reads and writes: both count.
    """
    found = {}
    for kind in {torch.float32: None, devices.choose_precision("auto", device): None}:
        multiply, work = product(device, kind)
        found[f"tera_multiply_adds_{devices.name_of(kind)}"] = work / quickest(multiply, device, seconds) / 1e12
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy_gigabytes"] = 2 * source.nbytes / quickest(lambda: target.copy_(source), device, seconds) / 1e9
    return found


def product(device: torch.device, kind: torch.dtype) -> tuple[Callable[[], Any], int]:
    """A product of two matrices that are large for the device, and its multiply-adds."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    return lambda: a @ b, size**3


def methods(settings: Settings, seconds: float) -> dict[str, dict[str, Any]]:
    """Every entry that takes steps, of each modality whose data are prepared, and some with a wide encoder."""
    entries = {}
    for modality, bench in settings.benchmark.items():
        if Path("data", modality, "manifest.json").exists():
            entries |= {f"{modality}/{name}": settings.entry(modality, name) for name in bench.methods}
    for name, encoder in WIDE.items():
        if entry := entries.get(f"image/{name}"):
            entries[f"image/{name}, {encoder['name']}"] = entry.model_copy(update={"encoder": encoder})
    return {key: reached(entry, seconds) for key, entry in entries.items() if ssl_methods.load(entry.method).columns}


def reached(entry: Entry, seconds: float) -> dict[str, Any]:
    """An entry's speed, in turns with a matrix product in its precision; its arithmetic; and where its time goes."""
    trainer = Trainer(entry, Path("data", entry.modality), devices.choose(entry.training.device))
    multiply, most = product(trainer.device, trainer.precision)
    moment, work = seconds / TURNS, trainer.multiply_adds()
    speeds = race(
        {"entry": lambda: trainer.turn(moment), "product": lambda: steps_within(moment, multiply, trainer.device)}
    )
    return {
        "samples_per_second": speeds["entry"],
        "multiply_adds": work,
        "share_of_peak": 100 * work * speeds["entry"]["median"] / (most * speeds["product"]["median"]),
        "phases": profile(trainer, steps=6),
        "products": in_products(trainer, steps=3),
    }
