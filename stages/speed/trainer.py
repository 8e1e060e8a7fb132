"""One entry in training, step by step, and where the time of its steps goes."""

import contextlib
import inspect
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import ssl_methods
from ssl_methods import load_modality

from ..common.settings import Entry
from ..training import devices
from ..training.columns import Columns, facts_of, manifest
from ..training.cost import multiply_adds
from ..training.loop import build_method, descend
from ..training.optimizers import optimizer_of
from .timing import steps_within, wait_for

# torch's operators that convolve or multiply matrices, forward and backward.
PRODUCTS = re.compile("conv|mm$|matmul|attention")


class Trainer:
    """One entry in training on a prepared data set, as `stages.training.loop` trains it, without its bookkeeping."""

    def __init__(self, entry: Entry, folder: Path, device: torch.device):
        devices.keep_freed_memory()
        self.entry, self.device, self.taken = entry, device, 0
        self.method = build_method(entry, facts_of(manifest(folder)), seed=0)
        self.method.to(device, memory_format=torch.channels_last).train()
        self.columns = Columns(folder / "train", ssl_methods.load(entry.method).columns, device)
        self.optimizer = optimizer_of(self.method, entry.training)
        self.precision = devices.choose_precision(entry.training.precision, device)
        self.forward = torch.compile(self.method) if entry.training.compile else self.method

    def step(self, phase: Callable[[str], Any] = contextlib.nullcontext) -> None:
        training = self.entry.training
        with phase("batch"):
            batch = self.columns.batch(self.taken, training.batch_size, seed=0)
        half = self.precision is torch.bfloat16
        with phase("forward"), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            loss, _ = self.forward(batch)
        with phase("backward"):
            descend(self.optimizer, loss, 1e-4, training.clip)
        with phase("after_step"):
            self.method.after_step()
        self.taken += 1

    def turn(self, seconds: float) -> int:
        """Steps for about so long; returns the samples seen."""
        return steps_within(seconds, self.step, self.device) * self.entry.training.batch_size

    def multiply_adds(self) -> int:
        """Of one step, forward and backward, per sample."""
        return multiply_adds(self.step, self.entry.training.batch_size)


class Clock:
    """Seconds by phase. A phase within another counts for itself alone; what lies between phases counts for none."""

    def __init__(self, device: torch.device):
        self.device, self.phase, self.since = device, None, 0.0
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        outer = self.phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(outer)

    def switch(self, phase: str | None) -> None:
        wait_for(self.device)
        now = time.perf_counter()
        if self.phase:
            self.seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now


def profile(trainer: Trainer, steps: int) -> dict[str, float]:
    """The share of each phase in `steps` steps, in percent. The modality's functions are the phase `views`."""
    clock, modality, optimizer = Clock(trainer.device), load_modality(trainer.entry.modality), trainer.optimizer
    with contextlib.ExitStack() as timed:
        for name, function in list(vars(modality).items()):
            if inspect.isfunction(function) and function.__module__ == modality.__name__:
                timed.enter_context(mock.patch.object(modality, name, clock("views")(function)))
        timed.enter_context(mock.patch.object(optimizer, "step", clock("optimizer")(optimizer.step)))
        for _ in range(steps):
            trainer.step(clock)
    total = sum(clock.seconds.values())
    return {phase: 100 * spent / total for phase, spent in clock.seconds.items()}


def in_products(trainer: Any, steps: int) -> float:
    """The share of convolutions and matrix products in the operators' time of `steps` steps, in percent: the part that
    only another library, or other arithmetic, would shorten.
    """
    spent_in = "self_device_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # none of them, else the profiler reports errors where no GPU is
    with torch.profiler.profile() as seen:
        for _ in range(steps):
            trainer.step()
    spent = {op.key: getattr(op, spent_in) for op in seen.key_averages() if op.key.startswith("aten::")}
    return 100 * sum(took for name, took in spent.items() if PRODUCTS.search(name)) / sum(spent.values())
