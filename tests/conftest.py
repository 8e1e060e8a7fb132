"""What several tests need: small pictures, features, and the repository's own settings."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.common import settings

ROOT = Path(__file__).parent.parent


def pytest_configure() -> None:
    """Of several processes that test at once (`pytest -n 2`), each has its part of the cores, as has what it starts."""
    if count := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages are run from the repository's root; no test writes to a tracker unless it asks for one."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """It reaches what tests start, also where a shell has started the tests in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def params() -> settings.Settings:
    return settings.read(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def pictures() -> Tensor:
    """Something to learn: a coloured disc on a ground that is bright above, (256, 3, 16, 16) uint8."""
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(256, 2, 1, 1, generator=generator) * 10 + 3
    colour = torch.rand(256, 3, 1, 1, generator=generator) * 255
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    disc = ((y - place[:, :1]) ** 2 + (x - place[:, 1:]) ** 2 < 12).float()  # (N, 1, H, W)
    ground = (230 - 12 * y).expand(256, 3, 16, 16)
    return (disc * colour + (1 - disc) * ground).to(torch.uint8)


@pytest.fixture(scope="session")
def sentences() -> dict[str, Tensor]:
    """Something to read: words of one of three topics, ten each, in turn; the next goes on. `token`, `next` (256, 12).

    Ids are those of `modalities.text`: 1 begins a sentence, 2 ends it, 0 pads; topics are 5..14, 15..24 and 25..34.
    """
    generator = torch.Generator().manual_seed(0)
    topic, start = torch.randint(3, (256, 1), generator=generator), torch.randint(10, (256, 1), generator=generator)
    length = torch.randint(4, 11, (256, 2), generator=generator)  # of words
    place = torch.arange(12)

    def sentence(first: Tensor, words: Tensor) -> Tensor:
        text = 5 + 10 * topic + (first + place - 1) % 10
        text = torch.where(place <= words, text, torch.where(place == words + 1, 2, 0))
        return torch.where(place == 0, 1, text).int()

    return {"token": sentence(start, length[:, :1]), "next": sentence(start + length[:, :1], length[:, 1:])}


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    """Features of two views of six pictures, (6, 5) each, for a loss to compare."""
    torch.manual_seed(0)
    return torch.randn(6, 5, requires_grad=True), torch.randn(6, 5, requires_grad=True)


@pytest.fixture(scope="session")
def films() -> dict[str, Tensor]:
    """Something to learn: a bar at some height in all frames, that sounds the higher the higher it is; 8 plays."""
    generator = torch.Generator().manual_seed(0)
    height = torch.randint(8, (96,), generator=generator)
    bar = (torch.arange(16) // 2 == height[:, None]).float()[:, None, None, :, None]  # (N, 1, 1, H, 1)
    tone = (torch.arange(8) == height[:, None]).float()[:, None]  # (N, 1, M)
    dim = torch.rand(96, 2, 3, 16, 16, generator=generator) * 60, torch.rand(96, 12, 8, generator=generator) * 60
    return {
        "video": (dim[0] + 180 * bar).to(torch.uint8),
        "sound": (dim[1] + 180 * tone).to(torch.uint8),
        "label": height // 3,
        "clip": torch.arange(96) // 12,
    }
