"""What several tests need: small pictures, features, and the repository's own settings."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages import settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages are run from the repository's root; no test writes to a tracker unless it asks for one."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")


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


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    """Features of two views of six pictures, (6, 5) each, for a loss to compare."""
    torch.manual_seed(0)
    return torch.randn(6, 5, requires_grad=True), torch.randn(6, 5, requires_grad=True)
