"""A frozen encoder on prepared data: its weights, and its features of a split."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_methods import build_encoder, load_modality

from ..common.settings import Evaluation, InputError, one_line
from ..training import devices
from ..training.columns import Columns, manifest
from . import Labelled


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a frozen encoder on prepared data, by a protocol."""

    encoder: nn.Module
    modality: str
    folder: Path
    protocol: Evaluation

    @cached_property
    def look(self) -> ModuleType:
        return load_modality(self.modality)

    @cached_property
    def device(self) -> torch.device:
        return devices.choose(self.protocol.device)

    @cached_property
    def data(self) -> dict[str, Any]:
        return manifest(self.folder)

    @property
    def classes(self) -> int:
        return len(self.data["classes"])


@dataclass(frozen=True)
class Split:
    """A split's rows that count, those with a label where the data has labels, as the encoder sees them."""

    name: str
    rows: Tensor  # (N,) their numbers, on the CPU
    labels: Tensor | None  # (N,)
    depths: dict[str, Tensor]  # {depth: (N, D) float32} of the modality's first tower, which stands for all

    @property
    def deepest(self) -> Tensor:
        return next(reversed(self.depths.values()))

    def at(self, depth: str) -> Labelled:
        return self.depths[depth], self.labels

    @property
    def last(self) -> Labelled:
        return self.deepest, self.labels

    def finite(self) -> bool:
        return all(features.isfinite().all() for features in self.depths.values())


def pretraining_status(models: Path) -> dict[str, Any]:
    """How the pretraining ended."""
    try:
        found = json.loads((models / "status.json").read_text(encoding="utf-8"))
        found["status"]
    except FileNotFoundError:
        raise InputError(f"{models} holds no pretrained encoder; run `dvc repro`, which trains it first") from None
    except Exception as error:  # whatever a damaged file makes of itself
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(
            f"{models}/status.json cannot be read ({reason}); delete {models} and run `dvc repro`"
        ) from None
    return found


def load(weights: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> nn.Module:
    """The encoder with its pretrained weights. Raises InputError for any that is missing, unexpected or mis-shaped."""
    network = build_encoder(settings, facts)
    try:
        found = load_file(weights)
    except Exception as error:  # whatever a damaged file makes of itself
        raise InputError(
            f"{weights} cannot be read ({one_line(error)}); delete its folder and run `dvc repro`"
        ) from None
    expected = network.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is unexpected" for name in found if name not in expected]
    faults += [
        f"{name} has shape {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise InputError(
            f"{weights} is of another encoder: {one_line(faults[0])}{more}; run `dvc repro`, which trains it anew"
        )
    network.load_state_dict(found)
    return network


def labelled(subject: Subject, split: str) -> tuple[Tensor, Tensor | None]:
    """The rows of a split that have a label, (N,), and their labels; where the data has no labels, all, and None.

    Raises InputError where no row of labelled data has a label.
    """
    path = subject.folder / split / "label.npy"
    if not path.exists():
        return torch.arange(subject.data["splits"][split]["rows"]), None
    labels = torch.from_numpy(np.load(path))
    rows = (labels >= 0).nonzero()[:, 0]
    if not len(rows):
        raise InputError(f"the {split} split has no labelled row, which the probe needs; label some, or none at all")
    return rows, labels[rows].to(subject.device)


def see(subject: Subject, split: str) -> Split:
    """A split as the encoder sees it."""
    rows, labels = labelled(subject, split)
    return Split(split, rows, labels, next(iter(embed(subject, split, rows).values())))


def embed(subject: Subject, split: str, rows: Tensor | None = None) -> dict[str, dict[str, Tensor]]:
    """The features of a split as it is, un-augmented, or of some of its rows: {tower: {depth: (N, D) float32}}.

    The encoder is left on the device, in evaluation mode.
    """
    columns = Columns(subject.folder / split, subject.look.columns, subject.device)
    rows = torch.arange(len(columns)) if rows is None else rows
    parts = []
    subject.encoder.to(subject.device).eval()
    for index in rows.split(subject.protocol.batch_size):
        with torch.inference_mode():
            parts.append(subject.look.embed(subject.encoder, columns.rows(index)))
    return {
        tower: {depth: torch.cat([part[tower][depth] for part in parts]).float() for depth in depths}
        for tower, depths in parts[0].items()
    }
