"""How fast pretraining is: against the device's limit, against peers, and as work grows. Outside the default run.

    python -m stages.speed [limit methods peers growth overhead] [--seconds 2] [--threads 2]

Every figure comes from one run on the device at hand: what is compared runs in turns, so that a moment when the machine
is busy hits all alike, and the medians of the turns are compared. They go to reports/speed.json, beside the other parts
if those were measured on the same device.
"""

import argparse
import contextlib
import inspect
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from operator import methodcaller
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import ssl_methods
from ssl_methods import load_modality

from ..common.command import command
from ..common.files import write_json
from ..common.progress import Progress
from ..common.settings import Entry, InputError, Settings, read
from ..reporting.results import read_json
from ..training import devices
from ..training.columns import Columns, facts_of, manifest
from ..training.cost import multiply_adds
from ..training.loop import build_method, descend
from ..training.optimizers import optimizer_of
from .energy import Meter

OUT = Path("reports/speed.json")
PARTS = ("limit", "methods", "peers", "growth", "overhead")
TURNS = 5  # of each contestant, after one that does not count
# The narrow encoder in which peers are compared, at full resolution, and the batch.
NARROW = {"name": "narrow", "architecture": "ResNet", "width": 32, "blocks": [1, 1, 1], "stride": 1}
BATCH = 256
PEERS = ("simclr", "byol", "moco", "barlow_twins", "dino")
# Encoders so wide that arithmetic is what a step is made of: what it then reaches of the limit.
WIDE = {
    "simclr": {"name": "width 512", "architecture": "ResNet", "width": 512, "blocks": [1, 1], "stride": 4},
    "simmim": {"name": "width 2048", "architecture": "ViT", "patch": 4, "width": 2048, "depth": 3, "heads": 32},
}

# torch's operators that convolve or multiply matrices, forward and backward.
PRODUCTS = re.compile("conv|mm$|matmul|attention")

Turn = Callable[[], int]  # works for a moment, and says on how many samples


def race(contestants: Mapping[str, Turn], turns: int = TURNS) -> dict[str, dict[str, float]]:
    """Samples/s of each contestant, which run in turns: the median, and the lowest and highest.

    The first turn of each warms up and does not count.
    """
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    bar = Progress("race", (turns + 1) * len(contestants), "turns")
    for number in range(turns + 1):
        for name, turn in contestants.items():
            began = time.perf_counter()
            samples = turn()
            if number:
                speeds[name].append(samples / (time.perf_counter() - began))
            bar.advance(1)
    bar.close()
    return {
        name: {"median": statistics.median(found), "low": min(found), "high": max(found)}
        for name, found in speeds.items()
    }


# ---- The device's limit


def limit(device: torch.device, seconds: float) -> dict[str, float]:
    """The most multiply-adds per second of a matrix product in each precision that training uses, and bytes per second
    of a copy.

    In units of 1e12 and 1e9. A copy reads and writes, and both count.
    """
    found = {}
    for kind in {torch.float32: None, devices.choose_precision("auto", device): None}:
        multiply, work = product(device, kind)
        name = f"tera_multiply_adds_{devices.name_of(kind)}"
        found[name] = work / quickest(multiply, device, seconds) / 1e12
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy_gigabytes"] = 2 * source.nbytes / quickest(lambda: target.copy_(source), device, seconds) / 1e9
    return found


def product(device: torch.device, kind: torch.dtype) -> tuple[Callable[[], Any], int]:
    """A product of two matrices that are large for the device, and its multiply-adds."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    return lambda: a @ b, size**3


def quickest(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """The least seconds that `work` took, of as many goes as fit in `seconds`, at least three."""
    least, until, goes = float("inf"), time.perf_counter() + seconds, 0
    while goes < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        wait_for(device)
        least, goes = min(least, time.perf_counter() - began), goes + 1
    return least


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- Training, step by step


def steps_within(seconds: float, step: Callable[[], None], device: torch.device) -> int:
    """How many steps, at least one, fit in about so long. Now and then, and at the end, the device is waited for."""
    until, taken = time.perf_counter() + seconds, 0
    while not taken or time.perf_counter() < until:
        step()
        taken += 1
        if taken % 8 == 0:
            wait_for(device)
    wait_for(device)
    return taken


class Trainer:
    """One entry in training, on a prepared data set, as `pretrain.fit` trains it, without its bookkeeping."""

    def __init__(self, entry: Entry, folder: Path, device: torch.device):
        kind = ssl_methods.load(entry.method)
        devices.keep_freed_memory()
        devices.leave_compiler_out()
        self.entry, self.device = entry, device
        self.method = build_method(entry, facts_of(manifest(folder)), seed=0)
        self.method.to(device, memory_format=torch.channels_last).train()
        self.columns = Columns(folder / "train", kind.columns, device)
        self.optimizer = optimizer_of(self.method, entry.training)
        self.precision = devices.choose_precision(entry.training.precision, device)
        self.forward = torch.compile(self.method) if entry.training.compile else self.method
        self.taken = 0

    def step(self, clock: "Clock | None" = None) -> None:
        clock = clock or Clock(self.device, silent=True)
        with clock("batch"):
            batch = self.columns.batch(self.taken, self.entry.training.batch_size, seed=0)
        half = self.precision is torch.bfloat16
        with clock("forward"), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            loss, _ = self.forward(batch)
        with clock("backward"):
            descend(self.optimizer, loss, 1e-4, self.entry.training.clip)
        with clock("after_step"):
            self.method.after_step()
        self.taken += 1

    def turn(self, seconds: float) -> int:
        """Steps for about so long; returns the samples seen."""
        return steps_within(seconds, self.step, self.device) * self.entry.training.batch_size

    def multiply_adds(self) -> int:
        """Of one step, forward and backward, per sample."""
        return multiply_adds(self.step, self.entry.training.batch_size)


class Clock:
    """Seconds by phase. A phase within another counts for itself alone."""

    def __init__(self, device: torch.device, silent: bool = False):
        self.device, self.silent = device, silent
        self.seconds: dict[str, float] = {}
        self.open: list[str] = []
        self.since = 0.0

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if self.silent:
            yield
            return
        self._charge()
        self.open.append(phase)
        try:
            yield
        finally:
            self._charge()
            self.open.pop()

    def _charge(self) -> None:
        """What has passed since the last change of phase goes to the innermost that is open."""
        wait_for(self.device)
        now = time.perf_counter()
        if self.open:
            self.seconds[self.open[-1]] = self.seconds.get(self.open[-1], 0.0) + now - self.since
        self.since = now


@contextlib.contextmanager
def watched(modality: ModuleType, optimizer: torch.optim.Optimizer, clock: Clock) -> Iterator[None]:
    """Within it, the modality's view functions and the optimizer's step are phases of the clock."""
    views = {
        name: f for name, f in vars(modality).items() if inspect.isfunction(f) and f.__module__ == modality.__name__
    }

    def timed(f: Callable, phase: str) -> Callable:
        def call(*given, **named):
            with clock(phase):
                return f(*given, **named)

        return call

    plain = optimizer.step
    try:
        for name, f in views.items():
            setattr(modality, name, timed(f, "views"))
        optimizer.step = timed(plain, "optimizer")
        yield
    finally:
        optimizer.step = plain
        for name, f in views.items():
            setattr(modality, name, f)


def profile(trainer: Trainer, steps: int) -> dict[str, float]:
    """The share of each phase in `steps` steps, in percent."""
    clock = Clock(trainer.device)
    with watched(load_modality(trainer.entry.modality), trainer.optimizer, clock):
        for _ in range(steps):
            trainer.step(clock)
    total = sum(clock.seconds.values())
    return {phase: 100 * spent / total for phase, spent in clock.seconds.items()}


def in_products(trainer: Any, steps: int) -> float:
    """The share of the operators' time in `steps` steps that convolutions and matrix products take, in percent: the
    part that only another library, or other arithmetic, would shorten.
    """
    on_gpu = trainer.device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # none of them, else the profiler reports errors where no GPU is
    with torch.profiler.profile() as seen:
        for _ in range(steps):
            trainer.step()
    spent = {
        operator.key: operator.self_device_time_total if on_gpu else operator.self_cpu_time_total
        for operator in seen.key_averages()
        if operator.key.startswith("aten::")
    }
    return 100 * sum(took for name, took in spent.items() if PRODUCTS.search(name)) / sum(spent.values())


def energy(trainer: Trainer, seconds: float) -> float | None:
    """Joules for a sample, over so long; None, and no work, where the machine counts none."""
    meter = Meter(trainer.device)
    if meter.read() is None:
        return None
    samples = trainer.turn(seconds)
    return meter.read() / samples


def methods(settings: Settings, seconds: float) -> dict[str, dict[str, Any]]:
    """Every entry of the default table whose data is prepared, and some with a wide encoder."""
    here = [modality for modality in settings.benchmark if Path("data", modality, "manifest.json").exists()]
    entries = {
        f"{modality}/{name}": settings.entry(modality, name)
        for modality in here
        for name in settings.benchmark[modality].methods
    }
    if "image" in here:
        for name, encoder in WIDE.items():
            entry = settings.entry("image", name).model_copy(update={"encoder": encoder})
            entries[f"image/{name}, {encoder['name']}"] = entry
    takes_steps = {key: entry for key, entry in entries.items() if ssl_methods.load(entry.method).columns}
    return {key: reached(entry, seconds) for key, entry in takes_steps.items()}


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
        "joules_per_sample": energy(trainer, moment),
        "phases": profile(trainer, steps=6),
        "products": in_products(trainer, steps=3),
    }


# ---- Peers


def peers(settings: Settings, seconds: float) -> dict[str, dict[str, Any]]:
    """Ours against others, the same encoder, batch and pictures, from uint8 pictures to the next weights.

    `stock` is lightly as its examples show it: PIL views in two workers, float32. `modules` are its modules and losses
    fed by our views, in our precision and memory layout. `kornia` is ours with kornia's views. Each has a process of
    its own. `ours` over each is a ratio of medians; `compiled` is ours with `compile: true`, compiled in the turn that
    does not count. `phases` are the shares of ours, and `products` what convolutions and matrix products take of
    `modules`, which ours cannot save, in percent.
    """
    from .peers import Kornia, Modules, Stock

    folder, found = prepared("image"), {}
    for name in PEERS:
        entry = narrow(settings.entry("image", name))
        compiled = entry.training.model_copy(update={"compile": True})
        given = folder, devices.choose(entry.training.device)
        makers = {
            "ours": partial(Trainer, entry, *given),
            "modules": partial(Modules, name, entry, *given),
            "stock": partial(Stock, name, entry, *given),
            "kornia": partial(Kornia, entry, *given),
            "compiled": partial(Trainer, entry.model_copy(update={"training": compiled}), *given),
        }
        with contextlib.ExitStack() as all_of_them:
            asked = {who: all_of_them.enter_context(apart(make)) for who, make in makers.items()}
            turn = methodcaller("turn", seconds)
            speeds = race({who: partial(ask, turn) for who, ask in asked.items()}, turns=9)
            phases = asked["ours"](partial(profile, steps=20))
            products = asked["modules"](partial(in_products, steps=5))
        others = "modules", "kornia", "stock"
        ratios = {f"over_{who}": speeds["ours"]["median"] / speeds[who]["median"] for who in others}
        ratios |= {
            f"compiled_{key}": speeds["compiled"]["median"] / speeds["ours"]["median"] * over
            for key, over in ratios.items()
        }
        found[name] = speeds | ratios | {"phases": phases, "products": products}
    return found


@contextlib.contextmanager
def apart(make: Callable[[], Any]) -> Iterator[Callable[[Callable[[Any], Any]], Any]]:
    """What `make` returns, made and kept in a process of its own, where nobody else's settings reach it: how memory is
    kept is one for a whole process. Yields the way to it: a function that answers `work` with `work(what was made)`.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(_keep, make, torch.get_num_threads()).result()
        yield lambda work: process.submit(_ask, work).result()


_kept: list[Any] = []  # in a process of `apart`, what was made there


def _keep(make: Callable[[], Any], threads: int) -> None:
    torch.set_num_threads(threads)
    _kept.append(make())


def _ask(work: Callable[[Any], Any]) -> Any:
    return work(_kept[0])


def narrow(entry: Entry) -> Entry:
    training = entry.training.model_copy(update={"batch_size": BATCH})
    return entry.model_copy(update={"encoder": NARROW, "training": training})


def prepared(modality: str) -> Path:
    folder = Path("data", modality)
    if not (folder / "manifest.json").exists():
        raise InputError(f"{folder} holds no prepared data; run `dvc repro prepare@{modality}` first")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="part", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--threads", type=int, help="on a CPU")
    parser.add_argument("--profile", help="a training profile for image, in place of the benchmark's")
    given = parser.parse_args()
    if odd := set(given.parts) - set(PARTS):
        raise InputError(f"speed has no part {', '.join(sorted(odd))}; its parts are {', '.join(PARTS)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    settings = read()
    if given.profile:
        image = settings.benchmark["image"].model_copy(update={"training": given.profile})
        settings = settings.model_copy(update={"benchmark": {**settings.benchmark, "image": image}})
    from .growth import growth, overhead

    device = devices.choose("auto")
    here = {
        "device": devices.describe(device),
        "precision": devices.name_of(devices.choose_precision("auto", device)),
        "torch": torch.__version__,
    }
    print(*here.values())
    found = read_json(OUT)
    if {key: found.get(key) for key in here} != here:  # figures of different machines say nothing together
        found = here
    work = {
        "limit": lambda: limit(device, given.seconds),
        "methods": lambda: methods(settings, given.seconds),
        "peers": lambda: peers(settings, given.seconds),
        "growth": lambda: growth(settings, given.seconds),
        "overhead": lambda: overhead(settings),
    }
    for part in given.parts:
        found[part] = work[part]()
        write_json(OUT, found)


if __name__ == "__main__":
    command(main)
