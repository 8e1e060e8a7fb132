"""The protocol: all that is measured on a frozen encoder, in the order that keeps the table honest.

No method is known here: there are an architecture, weights and arrays. Every choice (a probe's strength, k, a depth, an
epoch) is made on validation data, before any column of test is opened; then train and validation together predict test,
which is read once. `measure` has that order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from ..common.settings import Evaluation, InputError
from ..training import devices
from ..training.columns import Columns, facts_of, manifest
from . import Labelled, best, finetune, knn, linear, low_label, standard_error
from .clustering import clustering
from .diagnostics import health, map_of, neighbours, partners
from .frozen import Split, Subject, embed, labelled, load, pretraining_status, see

# What an evaluation has to say, each with what stands for "not measured".
ACCURACIES = ("linear", "linear_depth", "knn", "finetune", "transfer")  # the second at the depth that was chosen
HEALTH = ("effective_rank", "spread", "dead", "lidar", "alignment", "uniformity", "features")
UNMEASURED = dict.fromkeys([*ACCURACIES, "low_label", *HEALTH, "symptom", "choices", "neighbours"])
UNMEASURED |= dict.fromkeys([f"{name}_{what}" for what in ("error", "validation") for name in ACCURACIES])
UNMEASURED["low_label_error"] = None
# Validation accuracies by depth, and by strength or epoch in points that `dvc plots` draws; what is a table of its own.
UNMEASURED |= {"depths": {}, "probe": [], "finetune_curve": [], "low_label_details": {}, "transfer_details": {}}
UNMEASURED |= {"clustering": {}, "confusion": [], "map": {}, "retrieval": {}, "zero_shot": {}}

FEWEST = "1 %"  # the budget of labels that `low_label` is of; `low_label_details` has all

# The share of an evaluation that is done after each part, roughly as a CPU takes for the default networks.
FEATURES, VIEWED, PROBED, FINETUNED = 0.1, 0.22, 0.34, 0.9
Advance = Callable[[float], None]


@dataclass(frozen=True)
class Choices:
    """All that is decided before test is opened. Curves are validation accuracies, in percent."""

    probes: dict[str, linear.Chosen]  # by depth, the deepest last
    votes: dict[int, float]  # {k: accuracy}
    low_label: dict[str, low_label.Drawn]
    transfer: linear.Chosen | None  # on the labels of `transfer`
    finetuned: finetune.Tuned | None

    @property
    def depths(self) -> dict[str, float]:
        return {depth: max(chosen.curve.values()) for depth, chosen in self.probes.items()}

    @property
    def depth(self) -> str:
        """The best, and the deepest among equals."""
        return best(dict(reversed(self.depths.items())))


def evaluate(
    models: Path,
    folder: Path,
    modality: str,
    encoder: Mapping[str, Any],
    protocol: Evaluation,
    *,
    mapped: bool = True,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """All that there is to say of the weights in `models` on the data in `folder`: the keys of UNMEASURED and two more.

    `encoder` is the encoder's block of plan.json, and `mapped` whether to make a map of the features; `advance` is told
    from time to time which share of the work is done. The `status` is ok, diverged (in pretraining, or features that
    are not finite), collapsed (see `symptom_of`) or unlabelled; `data` tells classes and rows. Raises InputError for
    missing files, for weights that do not fit, and for a split without a labelled row.
    """
    devices.keep_freed_memory()
    data = manifest(folder)
    measured = {"status": "diverged"}
    if pretraining_status(models)["status"] != "diverged":
        network = load(models / "encoder.safetensors", encoder, facts_of(data))
        measured = measure(Subject(network, modality, folder, protocol), mapped, advance or (lambda share: None))
    rows = {split: described["rows"] for split, described in data["splits"].items()}
    found = {key: measured.get(key, nothing) for key, nothing in UNMEASURED.items()}
    return {"status": measured["status"], **found, "data": {"classes": data["classes"], "rows": rows}}


def validation_score(encoder: nn.Module, modality: str, folder: Path, protocol: Evaluation) -> float | None:
    """What a sweep maximises: the linear probe's accuracy on validation, trained on train, in percent.

    Test stays closed. None where the features are not finite. Raises InputError for data without labels.
    """
    subject = Subject(encoder, modality, folder, protocol)
    if not subject.classes:
        raise InputError(
            f"a sweep is scored by labels, and {subject.data['data']} has none; empty benchmark.{modality}.sweeps"
        )
    train, validation = (see(subject, split) for split in ("train", "validation"))
    if not (train.finite() and validation.finite()):
        return None
    chosen = linear.choose(train.last, validation.last, strengths=protocol.strengths, classes=subject.classes)
    return max(chosen.curve.values())


def measure(subject: Subject, mapped: bool, advance: Advance) -> dict[str, Any]:
    """All that is measured, and a status. Accuracies are in percent."""
    train, validation = see(subject, "train"), see(subject, "validation")
    if not (train.finite() and validation.finite()):
        return {"status": "diverged"}
    advance(FEATURES)
    found = health(subject, train)
    advance(VIEWED)
    chosen = choose(subject, train, validation, advance) if subject.classes else None
    # Nothing has opened test until here, and nothing is chosen from here on.
    rows, labels = labelled(subject, "test")
    towers = embed(subject, "test")
    test = Split("test", rows, labels, {depth: h[rows] for depth, h in next(iter(towers.values())).items()})
    if not test.finite():
        return {"status": "diverged"}
    found |= {"neighbours": neighbours(subject, train, test)}
    if chosen is None:
        return found
    found |= read_probes(subject, chosen, train, validation, test)
    found |= read_low_label(chosen, test)
    found |= read_transfer(subject, chosen, train, validation, test)
    found |= read_finetuned(subject, chosen, test)
    found |= partners(subject, towers)
    found["clustering"] = clustering(test.deepest, test.labels, subject.classes)
    return found | {"map": map_of(test) if mapped and found["status"] == "ok" else {}}


def choose(subject: Subject, train: Split, validation: Split, advance: Advance) -> Choices:
    """Everything that is to be chosen, from train and validation alone."""
    protocol, classes = subject.protocol, subject.classes
    few, kind = protocol.low_label, {"temperature": protocol.temperature, "classes": classes}
    strengths = protocol.strengths
    probes = {
        depth: linear.choose(train.at(depth), validation.at(depth), strengths=strengths, classes=classes)
        for depth in train.depths
    }
    votes = knn.scores(train.last, validation.last, ks=protocol.neighbours, **kind)
    drawn = low_label.choose(train.last, validation.last, classes=classes, **few.model_dump()) if few else {}
    transfer = choose_transfer(subject, train, validation)
    advance(PROBED)
    return Choices(probes, votes, drawn, transfer, tune(subject, train, validation, advance))


def read_probes(subject: Subject, chosen: Choices, train: Split, validation: Split, test: Split) -> dict[str, Any]:
    """The linear probe, at the deepest features and at the depth that was chosen, and k-NN."""
    classes, temperature = subject.classes, subject.protocol.temperature
    (*_, last), depth = train.depths, chosen.depth
    probes = {
        at: linear.read(chosen.probes[at], *(split.at(at) for split in (train, validation, test)), classes=classes)
        for at in {last, depth}
    }
    probe, probed = probes[last], probes[depth]
    voted = knn.read(chosen.votes, train.last, validation.last, test.last, temperature=temperature, classes=classes)
    found = {}
    for name, tested in {"linear": probe, "linear_depth": probed, "knn": voted}.items():
        found |= score(name, tested.test, tested.validation, len(test.labels))
    return found | {
        "choices": {
            "strength": probe.strength,
            "depth": depth,
            "depth_strength": probed.strength,
            "k": voted.k,
            "temperature": temperature,
            "transfer_strength": chosen.transfer.strength if chosen.transfer else None,
            "epoch": chosen.finetuned.epoch if chosen.finetuned else None,
        },
        "depths": chosen.depths,
        "probe": [{"strength": strength, "validation": accuracy} for strength, accuracy in probe.curve.items()],
        "confusion": confusion_matrix(test.labels.cpu(), probe.predicted.cpu(), labels=range(classes)).tolist(),
    }


def score(name: str, test: float, validation: float, rows: int) -> dict[str, float]:
    """An accuracy with its validation accuracy and its error."""
    return {name: test, f"{name}_validation": validation, f"{name}_error": standard_error(test, rows)}


def read_low_label(chosen: Choices, test: Split) -> dict[str, Any]:
    """The linear probe with few labels."""
    found = low_label.read(chosen.low_label, test.last)
    if FEWEST not in found:
        return {"low_label_details": found}
    mean = found[FEWEST]["accuracy"]
    error = standard_error(mean, len(test.labels))
    return {"low_label": mean, "low_label_error": error, "low_label_details": found}


def relabelled(subject: Subject, split: Split) -> Labelled | None:
    """A split with the labels of the column that `transfer` names; None where it names none that the data has."""
    transfer = subject.protocol.transfer
    path = subject.folder / split.name / f"{transfer.label.get(subject.modality) if transfer else None}.npy"
    if not path.exists():
        return None
    return split.deepest, torch.from_numpy(np.load(path))[split.rows].to(subject.device)


def choose_transfer(subject: Subject, train: Split, validation: Split) -> linear.Chosen | None:
    """The linear probe on the labels of `transfer`; None where there are none."""
    known = relabelled(subject, train), relabelled(subject, validation)
    if any(split is None for split in known):
        return None
    strengths = subject.protocol.transfer.strengths
    return linear.choose(*known, strengths=strengths, classes=numbered(*known), change=linear.COARSE)


def read_transfer(subject: Subject, chosen: Choices, train: Split, validation: Split, test: Split) -> dict[str, Any]:
    """The linear probe on the labels of `transfer`. A class that test alone has is missed."""
    if chosen.transfer is None:
        return {}
    known = [relabelled(subject, split) for split in (train, validation, test)]
    probe = linear.read(chosen.transfer, *known, classes=numbered(*known[:2]), change=linear.COARSE)
    details = {
        "label": subject.protocol.transfer.label[subject.modality],
        "classes": len(torch.cat([labels for _, labels in known]).unique()),
    }
    return score("transfer", probe.test, probe.validation, len(test.labels)) | {"transfer_details": details}


def numbered(train: Labelled, validation: Labelled) -> int:
    """By how many numbers the classes of both are known."""
    return 1 + max(int(train[1].max()), int(validation[1].max()))


def examples(subject: Subject, split: Split) -> finetune.Examples:
    columns = Columns(subject.folder / split.name, subject.look.columns, subject.device)
    return finetune.Examples(lambda places: columns.rows(split.rows[places]), split.labels)


def tune(subject: Subject, train: Split, validation: Split, advance: Advance) -> finetune.Tuned | None:
    """The encoder, fine-tuned; None where the protocol says not to, or where there is nothing to tune."""
    recipe = subject.protocol.finetune
    if recipe is None:
        return None
    return finetune.tune(
        subject.encoder,
        subject.look.features,
        examples(subject, train),
        examples(subject, validation),
        recipe=recipe,
        frozen=train.deepest,
        classes=subject.classes,
        precision=devices.choose_precision(recipe.precision, subject.device),
        block=subject.protocol.batch_size,
        advance=lambda share: advance(PROBED + share * (FINETUNED - PROBED)),
    )


def read_finetuned(subject: Subject, chosen: Choices, test: Split) -> dict[str, Any]:
    """The accuracy of the fine-tuned encoder."""
    tuned = chosen.finetuned
    if tuned is None:
        return {}
    reached = finetune.score(tuned.network, examples(subject, test), subject.protocol.batch_size)
    curve = [{"epoch": epoch, "validation": accuracy} for epoch, accuracy in tuned.curve.items()]
    return score("finetune", reached, tuned.curve[tuned.epoch], len(test.labels)) | {"finetune_curve": curve}
