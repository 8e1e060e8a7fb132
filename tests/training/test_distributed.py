"""One run on two processes is the run on one: its gradient, its buffers and its weights, for every method."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ssl_methods
from ssl_methods.parts.processes import processes
from stages.common import settings
from stages.common.settings import Entry, InputError
from stages.training import distributed, loop
from stages.training.columns import Columns
from stages.training.loop import build_method, descend, fit
from stages.training.optimizers import optimizer_of
from tests.methods import test_methods

ROOT = Path(__file__).parents[2]
N = 13  # rows of each of two processes: no other size of the small methods is a multiple of it
STEPS = 20
STATELESS = ("rand", "randn", "randint", "rand_like", "randn_like")
IN_PLACE = ("exponential_", "bernoulli_", "uniform_", "normal_", "random_")


class OneStream(TorchDispatchMode):
    """Has each process draw its rows' part of what one process draws for all rows; all have the same seed.

    A dimension of k times N counts rows, k times over, as for two views. A draw without one is for all to share.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if processes() == 1 or name not in (*STATELESS, *IN_PLACE):
            return function(*args, **kwargs)
        if name in IN_PLACE:
            x, *rest = args
            return x.copy_(part(function(x.new_empty(whole(x.shape)), *rest, **kwargs)))
        if name.endswith("_like"):
            x = args[0]
            return part(function(x.new_empty(whole(x.shape)), **kwargs))
        *before, size = args  # randint has bounds before its size
        return part(function(*before, whole(size), **kwargs))


def rows_of(size: list[int]) -> int | None:
    """The dimension that counts rows."""
    return next((d for d, length in enumerate(size) if length and length % N == 0), None)


def whole(size: list[int]) -> list[int]:
    at = rows_of(size)
    return [length * processes() if d == at else length for d, length in enumerate(size)]


def part(drawn: Tensor) -> Tensor:
    at = rows_of(drawn.shape)
    if at is None:
        return drawn
    return drawn.unflatten(at, (-1, processes(), N)).select(at + 1, distributed.rank()).flatten(at, at + 1).contiguous()


@contextmanager
def doubles() -> Iterator[None]:
    """Within it, float64 stands for float32: rounding, which training enlarges, then hides nothing."""
    single = Tensor.float
    Tensor.float = Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        Tensor.float = single
        torch.set_default_dtype(torch.float32)


@doubles()
def train(entry: Entry, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the first step, and all state after STEPS steps, by name."""
    method = build_method(entry, test_methods.FACTS, seed=0).train()
    training = entry.training.model_copy(update={"optimizer": "sgd", "lr": 1e-2})
    optimizer, forward, found = optimizer_of(method, training), distributed.share(method), {}
    for step in range(STEPS):
        places = (torch.arange(2 * N) + step * 2 * N) % len(next(iter(rows.values())))
        places = places.chunk(processes())[distributed.rank()] if processes() > 1 else places
        method.progress = step / STEPS
        with OneStream():
            loss, _ = forward({"index": places, **{name: column[places] for name, column in rows.items()}})
            descend(optimizer, loss, training.lr, clip=None)
            method.progress = (step + 1) / STEPS
            method.after_step()
        if step == 0:
            found |= {f"gradient of {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    return found | {name: value.clone() for name, value in method.state_dict().items()}


@cache
def cases() -> dict[str, Entry]:
    """Every entry that trains, small."""
    params, found = settings.read(ROOT / "params.yaml"), {}
    for modality, name in test_methods.ENTRIES:
        entry = test_methods.small(params.entry(modality, name))
        if ssl_methods.load(entry.method).passes != 0:
            found[f"{modality}-{name}"] = entry
    return found


def main(rows: dict[str, dict[str, Tensor]], out: Path) -> None:
    """What each of the processes that torch's launcher started does: trains every entry, and keeps how it ended."""
    with distributed.group(torch.device("cpu")):
        found = {name: train(entry, rows[entry.modality]) for name, entry in cases().items()}
        found |= dict(zip(("straight", "resumed"), interrupted(out), strict=True))
    torch.save(found, out / f"{distributed.rank()}.pt")


def interrupted(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """How BYOL ends by the loop itself, where each process draws for itself: in one go, and interrupted on the way."""
    entry, keep = test_methods.small(settings.read().entry("image", "byol")), folder / "keep"
    columns = Columns(folder, ["image"], torch.device("cpu"))
    keep.mkdir(exist_ok=True)

    def ended(**options) -> dict[str, Tensor]:
        method = build_method(entry, test_methods.FACTS, seed=0).train()
        fit(method, columns, entry.training, steps=14, seed=0, **options)
        return {name: value.clone() for name, value in method.state_dict().items()}

    def stop(step: int, **numbers: float) -> None:
        if step == 9:
            raise KeyboardInterrupt

    loop.CHECKPOINT_SECONDS = 0.0
    straight = ended()
    with suppress(KeyboardInterrupt):
        ended(keep=keep, log=stop)
    assert (keep / "checkpoint.pt").exists()
    return straight, ended(keep=keep)


@pytest.fixture(scope="module")
def every_rows(pictures, sentences, films) -> dict[str, dict[str, Tensor]]:
    # No two patches alike: rounding would choose the centroid of one that is as near to two.
    grain = torch.randint(-20, 21, pictures.shape, generator=torch.Generator().manual_seed(0))
    given = (pictures + grain).clamp(0, 255).to(torch.uint8), sentences, films
    return {modality: test_methods.columns_of(modality, *given) for modality in test_methods.MODALITIES}


@pytest.fixture(scope="module")
def on_two(every_rows, pictures, tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes ended with, {entry: state}."""
    folder = tmp_path_factory.mktemp("two")
    torch.save(every_rows, folder / "rows.pt")
    np.save(folder / "image.npy", pictures.numpy())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*launcher, __file__, str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", cases())
def test_two_processes_with_half_the_batch_train_as_one(name, every_rows, on_two):
    entry = cases()[name]
    first, second = (found[name] for found in on_two)
    expected = train(entry, every_rows[entry.modality])
    assert first.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), f"{key} differs between the processes"
        torch.testing.assert_close(first[key], value, rtol=1e-6, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


def test_an_interrupted_run_on_two_processes_ends_with_the_same_bytes(on_two):
    for found in on_two:
        for name, value in found["straight"].items():
            assert torch.equal(found["resumed"][name], value), name
            assert torch.equal(value, on_two[0]["straight"][name]), f"{name} differs between the processes"


def test_processes_that_cannot_share_a_batch_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="says `processes: 2`"):
        distributed.check(64, 2, "simclr")
    with pytest.raises(InputError, match="choose a multiple of 3"):
        distributed.check(64, 3, "simclr")
    with pytest.raises(InputError, match="two rows or more for each"):
        distributed.check(3, 3, "simclr")
    distributed.check(66, 3, "simclr")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    main(torch.load(folder / "rows.pt", weights_only=True), folder)
