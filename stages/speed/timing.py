"""How work is timed: in turns with what it is compared with, or the quickest of several goes."""

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import torch

from ..common.progress import Progress

TURNS = 5  # of each contestant, after one that does not count

Turn = Callable[[], int]  # works for a moment, and returns the number of samples it went through


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
    return {name: {"median": statistics.median(of), "low": min(of), "high": max(of)} for name, of in speeds.items()}


def quickest(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """The least seconds that `work` took, of as many goes as fit in `seconds`, at least three."""
    least, until, goes = float("inf"), time.perf_counter() + seconds, 0
    while goes < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        wait_for(device)
        least, goes = min(least, time.perf_counter() - began), goes + 1
    return least


def steps_within(seconds: float, step: Callable[[], Any], device: torch.device) -> int:
    """Takes steps for about so long, at least one; returns how many. It waits for the device now and then."""
    until, taken = time.perf_counter() + seconds, 0
    while not taken or time.perf_counter() < until:
        step()
        taken += 1
        if taken % 8 == 0:
            wait_for(device)
    wait_for(device)
    return taken


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def apart(make: Callable[[], Any], threads: int | None = None) -> Iterator[Callable[[Callable[[Any], Any]], Future]]:
    """What `make` returns, kept in a process of its own, which settings of other contestants do not reach.

    Yields `ask`: `ask(work).result()` is `work(what was made)`, done there.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(_keep, make, threads or torch.get_num_threads()).result()
        yield lambda work: process.submit(_ask, work)


_kept: list[Any] = []  # in a process of `apart`, what was made there


def _keep(make: Callable[[], Any], threads: int) -> None:
    torch.set_num_threads(threads)
    _kept.append(make())


def _ask(work: Callable[[Any], Any]) -> Any:
    return work(_kept[0])
