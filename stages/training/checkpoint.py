"""An interrupted pretraining goes on where it was, and ends with the same bytes.

A checkpoint lies in a folder whose name holds a hash of everything that the run depends on, so a changed setting can
never resume a stale run.
"""

import fcntl
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_methods.parts.processes import gather

from ..common.files import replacing
from ..common.settings import InputError
from . import distributed

SCRATCH = Path(".scratch")
FILE = "checkpoint.pt"
ASKED = threading.Event()  # to stop, by SIGTERM


def folder_of(stage: str, modality: str, entry: str, seed: int, key: str) -> Path:
    """Where a run keeps what it has so far, and its results; these depend on what `key` stands for."""
    return SCRATCH / stage / modality / entry / str(seed) / key


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a run's folder, and holds its lock. Raises InputError where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} is used by another process; wait for it, or stop it") from None
        yield


@contextmanager
def patient() -> Iterator[None]:
    """Within it SIGTERM interrupts nothing: it sets ASKED, for a loop to save a checkpoint and end. Then it raises
    KeyboardInterrupt, as Ctrl-C does at once.
    """
    ASKED.clear()
    if threading.current_thread() is not threading.main_thread():  # which alone may catch signals
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: ASKED.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if ASKED.is_set():
        raise KeyboardInterrupt


def save(folder: Path, device: torch.device, **state: Any) -> None:
    """Writes a checkpoint, with the state of torch's random numbers. It replaces the one before at once.

    The first of several processes writes it, with the random numbers of all.
    """
    on_cuda = device.type == "cuda"
    state["random"] = of_all(torch.get_rng_state(), device)
    state["random_cuda"] = of_all(torch.cuda.get_rng_state(device), device) if on_cuda else None
    if distributed.rank() == 0:
        with replacing(folder / FILE) as partial:
            torch.save(state, partial)


def of_all(state: Tensor, device: torch.device) -> Tensor:
    """The state (S,) of each process, (processes, S)."""
    return gather(state[None].to(device)).cpu()


def restore(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The last checkpoint, with torch's random numbers set as they were; None where there is none.

    One that cannot be read is said so and passed over: the run starts anew.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        own = distributed.rank()
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"][own].cpu().clone(), device)
        torch.set_rng_state(state["random"][own].cpu().clone())  # it reads a tensor's memory from its beginning
    except Exception as error:  # whatever a damaged file makes of itself
        print(f"warning: {path} cannot be read ({type(error).__name__}); starting anew", file=sys.stderr)
        return None
    return state
