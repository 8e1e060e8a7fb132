"""Freezes one pretrained encoder and measures its features.   python -m stages.evaluate image simclr --seed 0

data/<modality> and models/<modality>/<entry>/<seed>/{encoder.safetensors, status.json}
    -> metrics/<modality>/<entry>/<seed>/{scores.json, evaluate.json}

No method is known here: there are an architecture, weights and arrays. Every choice (the probe's strength, k) is made
on validation data; then train and validation together predict test, which is read once.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_methods import build_encoder, load_modality

from . import devices, plan
from .columns import Columns, facts_of, manifest
from .files import write_json
from .measures import knn, linear, standard_error
from .measures.rank import effective_rank
from .measures.retrieval import retrieval
from .measures.spread import spread
from .measures.zero_shot import zero_shot
from .progress import Progress
from .settings import Evaluation, InputError, command, read

SPLITS = ("train", "validation", "test")
# The keys of scores.json and of evaluate.json that hold a measure, each with what stands for "not measured".
ACCURACIES = ("linear", "linear_depth", "knn")  # the second at the depth of the encoder that validation prefers
SCORES = dict.fromkeys([*ACCURACIES, "effective_rank", "spread", "features"])
DETAILS = dict.fromkeys([f"{name}_{what}" for what in ("error", "validation") for name in ACCURACIES] + ["choices"])
# Validation accuracies by depth, and by strength in points that `dvc plots` draws; what was looked for in what; and how
# far the names of classes lead.
LISTS = {"depths": {}, "probe": [], "retrieval": {}, "zero_shot": {}}


def evaluate(
    models: Path, folder: Path, modality: str, encoder: Mapping[str, Any], protocol: Evaluation
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What scores.json and evaluate.json say of the weights in `models` on the data in `folder`.

    `encoder` is the encoder's block of plan.json. The status is ok, diverged (in pretraining, or features that are not
    finite), collapsed (see `measure`) or unlabelled; what was not measured is null.
    Raises InputError for missing files, for weights that do not fit, and for a split without a labelled row.
    """
    devices.keep_freed_memory()
    devices.leave_compiler_out()
    data = manifest(folder)
    if how_it_ended(models)["status"] == "diverged":
        measured = {"status": "diverged"}
    else:
        network = load(models / "encoder.safetensors", encoder, facts_of(data))
        embedded = {split: first_tower(network, modality, folder, split, protocol) for split in SPLITS}
        features = {split: pair[0] for split, pair in embedded.items()}
        labels = {split: pair[1] for split, pair in embedded.items()}
        measured = measure(features, labels, protocol, len(data["classes"]))
        if data["classes"]:
            measured |= matched(network, modality, folder, protocol)
    scores, details = (
        {key: measured.get(key, none) for key, none in kind.items()} for kind in (SCORES, DETAILS | LISTS)
    )
    rows = {split: described["rows"] for split, described in data["splits"].items()}
    status = {"status": measured["status"]}
    return status | scores, status | details | {"data": {"classes": data["classes"], "rows": rows}}


def validation_score(encoder: nn.Module, modality: str, folder: Path, protocol: Evaluation) -> float | None:
    """What a sweep maximises: the linear probe's accuracy on validation, trained on train, in percent.

    Test stays closed. None where the features are not finite. Raises InputError for data without labels.
    """
    data = manifest(folder)
    if not data["classes"]:
        raise InputError(f"a sweep is scored by labels, and {data['data']} has none; empty benchmark.{modality}.sweeps")
    splits = {split: first_tower(encoder, modality, folder, split, protocol) for split in ("train", "validation")}
    train, validation = ((list(depths.values())[-1], labels) for depths, labels in splits.values())
    if not all(features.isfinite().all() for features, _ in (train, validation)):
        return None
    return max(linear.choose(train, validation, strengths=protocol.strengths, classes=len(data["classes"])).values())


def how_it_ended(models: Path) -> dict[str, Any]:
    """How the pretraining ended."""
    try:
        return json.loads((models / "status.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{models} holds no pretrained encoder; run `dvc repro`, which trains it first") from None


def load(weights: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> nn.Module:
    """The encoder with its pretrained weights. Raises InputError for any that is missing, unexpected or mis-shaped."""
    network = build_encoder(settings, facts)
    try:
        found = load_file(weights)
    except (FileNotFoundError, SafetensorError) as error:
        raise InputError(f"{weights} cannot be read ({error}); delete its folder and run `dvc repro`") from None
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
        raise InputError(f"{weights} is of another encoder: {faults[0]}{more}; run `dvc repro`, which trains it anew")
    network.load_state_dict(found)
    return network


def first_tower(
    encoder: nn.Module, modality: str, folder: Path, split: str, protocol: Evaluation
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The features (N, D) of a split at each depth of the modality's first tower, which stands for all; its labels."""
    device = devices.choose(protocol.device)
    towers, labels = embed(encoder, modality, folder, split, device=device, batch_size=protocol.batch_size)
    return next(iter(towers.values())), labels


def embed(
    encoder: nn.Module, modality: str, folder: Path, split: str, *, device: torch.device, batch_size: int
) -> tuple[dict[str, dict[str, Tensor]], Tensor | None]:
    """The features of a split as it is, un-augmented: {tower: {depth: (N, D) float32}}, and its labels (N,).

    Where the data has labels, rows without one (-1) are passed over; where it has none, labels are None.
    The encoder is left on the device, in evaluation mode. Raises InputError where no row of labelled data has a label.
    """
    look, labels = load_modality(modality), folder / split / "label.npy"
    columns = Columns(folder / split, look.columns, device)
    rows, known = torch.arange(len(columns)), None
    if labels.exists():
        known = torch.from_numpy(np.load(labels))
        rows = rows[known >= 0]
        known = known[rows].to(device)
        if not len(rows):
            raise InputError(
                f"the {split} split has no labelled row, which the probe needs; label some, or none at all"
            )
    encoder.to(device).eval()
    return towers_of(encoder, look, columns, rows, batch_size, label=f"embed {split}"), known


def towers_of(
    encoder: nn.Module, look: ModuleType, columns: Columns, rows: Tensor, batch_size: int, label: str
) -> dict[str, dict[str, Tensor]]:
    """The features of those rows: {tower: {depth: (N, D) float32}}."""
    features, bar = [], Progress(label, len(rows), "rows")
    for index in rows.split(batch_size):
        with torch.inference_mode():
            features.append(look.embed(encoder, columns.rows(index)))
        bar.advance(len(index))
    bar.close()
    return {
        tower: {depth: torch.cat([part[tower][depth] for part in features]).float() for depth in depths}
        for tower, depths in features[0].items()
    }


def matched(encoder: nn.Module, modality: str, folder: Path, protocol: Evaluation) -> dict[str, dict[str, Any]]:
    """How often test rows find their partners, for each pairing that the modality has, {"sound to film": {"r1": ...}};
    and where classes have prompts, how often a row finds its class by name.

    Nothing for a modality without `partners`.
    """
    look, device = load_modality(modality), devices.choose(protocol.device)
    if not hasattr(look, "partners"):
        return {}
    columns = Columns(folder / "test", [*look.columns, *look.partner_columns], device)
    rows = torch.arange(len(columns))
    towers = towers_of(encoder, look, columns, rows, protocol.batch_size, label="embed partners")
    sought = look.partners(towers, {name: columns.columns[name] for name in look.partner_columns})
    found = {"retrieval": {name: retrieval(**parts) for name, parts in sought.items()}}
    if (folder / "prompts").exists():
        prompts = Columns(folder / "prompts", ("token", "label"), device).columns
        labels = Columns(folder / "test", ("label",), device).columns["label"]
        with torch.inference_mode():
            named = look.named(encoder, towers, prompts)
        if named:
            found["zero_shot"] = zero_shot(named[0], labels, named[1].float(), prompts["label"])
    return found


def measure(
    features: Mapping[str, Mapping[str, Tensor]],
    labels: Mapping[str, Tensor | None],
    protocol: Evaluation,
    classes: int,
) -> dict[str, Any]:
    """All that is measured on {split: {depth: (N, D)}} and {split: (N,)}, and a status. Accuracies in percent.

    Features are the deepest, which are the last, except for `linear_depth`, where validation data choose. They are
    collapsed where, on train, their spread or their effective rank lies below the protocol's threshold.
    """
    if not all(split.isfinite().all() for depths in features.values() for split in depths.values()):
        return {"status": "diverged"}
    *_, last = features["train"]
    deepest = features["train"][last]
    rank, spreading = effective_rank(deepest), spread(deepest)
    collapsed = spreading < protocol.collapsed_spread or rank < protocol.collapsed_rank
    health = {
        "status": "collapsed" if collapsed else "ok" if classes else "unlabelled",
        "effective_rank": rank,
        "spread": spreading,
        "features": deepest.shape[1],
    }
    if not classes:
        return health

    depths = {depth: [(features[split][depth], labels[split]) for split in SPLITS] for depth in features["train"]}
    curves = {
        depth: linear.choose(train, validation, strengths=protocol.strengths, classes=classes)
        for depth, (train, validation, _) in depths.items()
    }
    heights = {depth: max(curve.values()) for depth, curve in curves.items()}
    chosen = max(reversed(heights), key=heights.__getitem__)  # the deepest among equals
    probe = linear.read(curves[last], *depths[last], classes=classes)
    probed = probe if chosen == last else linear.read(curves[chosen], *depths[chosen], classes=classes)
    voted = knn.classify(*depths[last], ks=protocol.neighbours, temperature=protocol.temperature, classes=classes)
    tested = len(depths[last][-1][1])
    return health | {
        "linear": probe.test,
        "linear_depth": probed.test,
        "knn": voted.test,
        "linear_error": standard_error(probe.test, tested),
        "linear_depth_error": standard_error(probed.test, tested),
        "knn_error": standard_error(voted.test, tested),
        "linear_validation": probe.validation,
        "linear_depth_validation": probed.validation,
        "knn_validation": voted.validation,
        "choices": {
            "strength": probe.strength,
            "depth": chosen,
            "depth_strength": probed.strength,
            "k": voted.k,
            "temperature": protocol.temperature,
        },
        "depths": heights,
        "probe": [{"strength": strength, "validation": score} for strength, score in probe.curve.items()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modality")
    parser.add_argument("entry")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    planned = plan.lookup("evaluate", given.modality, given.entry)
    entry, protocol = read().entry(given.modality, given.entry), Evaluation(**planned["protocol"])
    folder, place = Path("data", given.modality), Path(given.modality, given.entry, str(given.seed))
    provenance = devices.provenance(planned, manifest(folder), devices.choose(protocol.device), torch.float32)
    key = devices.key_of([str(place), planned, provenance])

    from . import tracking  # here, so that what only watches is no part of what a result depends on

    tags = {"family": entry.family, "method": entry.method}
    with tracking.start(
        "evaluate", modality=given.modality, name=given.entry, seed=given.seed, params=planned, tags=tags, key=key
    ) as run:
        began = time.monotonic()
        scores, details = evaluate("models" / place, folder, given.modality, planned["encoder"], protocol)
        details |= {"seconds": round(time.monotonic() - began, 2), "provenance": provenance}
        write_json("metrics" / place / "scores.json", scores)
        write_json("metrics" / place / "evaluate.json", details)
        run.finish(**scores)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, float))
    print(f"{given.entry} {given.seed}: {scores['status']}{shown and ': '}{shown}; {details['seconds']:.0f} s")


if __name__ == "__main__":
    command(main)
