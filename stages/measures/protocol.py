"""The protocol: all that is measured on a frozen encoder, in the order that keeps the table honest.

No method is known here: there are an architecture, weights and arrays. Every choice (a probe's strength, k, a depth, an
epoch) is made on validation data, before any column of test is opened; then train and validation together predict test,
which is read once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..common.settings import Evaluation, InputError
from ..training import devices
from ..training.columns import Columns, facts_of, manifest
from ..training.panels import evenly, sheet
from . import Labelled, best, finetune, knn, linear, low_label, standard_error
from .alignment import alignment, uniformity
from .clustering import clustering
from .confusion import confusion
from .dead import dead
from .frozen import Split, Subject, embed, how_it_ended, labelled, load, see
from .lidar import lidar
from .neighbours import nearest
from .rank import effective_rank
from .retrieval import retrieval
from .scatter import scatter
from .spread import spread
from .zero_shot import zero_shot

# The keys of scores.json and of evaluate.json that hold a measure, each with what stands for "not measured".
ACCURACIES = ("linear", "linear_depth", "knn", "finetune", "transfer")  # the second at the depth that was chosen
HEALTH = ("effective_rank", "spread", "dead", "lidar", "alignment", "uniformity", "features")
SCORES = dict.fromkeys([*ACCURACIES, "low_label", *HEALTH])
DETAILS = dict.fromkeys([f"{name}_{what}" for what in ("error", "validation") for name in ACCURACIES])
DETAILS |= dict.fromkeys(["low_label_error", "choices", "neighbours", "symptom"])
# Validation accuracies by depth, and by strength or epoch in points that `dvc plots` draws; what is a table of its own.
LISTS = {"depths": {}, "probe": [], "finetune_curve": [], "low_label": {}, "transfer_details": {}, "clustering": {}}
LISTS |= {"confusion": [], "map": {}, "retrieval": {}, "zero_shot": {}}

FEWEST = "1 %"  # the budget of labels that scores.json reports
OBJECTS, VIEWS = 500, 10  # of train, and of each, for the measures that compare views; even, as they come in pairs
SPHERE = 2048  # rows of train whose pairs tell uniformity
MAPPED = 500  # rows of test on the map
ASKED, NEAREST = 6, 7  # pictures of test, and the nearest of train to each, on the sheet


@dataclass(frozen=True)
class Choices:
    """All that is decided before test is opened. Curves are validation accuracies, in percent."""

    depths: dict[str, linear.Chosen]
    votes: dict[int, float]  # {k: accuracy}
    few: dict[str, low_label.Drawn]
    moved: linear.Chosen | None  # on the labels of `transfer`
    tuned: finetune.Tuned | None

    @property
    def heights(self) -> dict[str, float]:
        return {depth: max(chosen.curve.values()) for depth, chosen in self.depths.items()}

    @property
    def depth(self) -> str:
        """The best, and the deepest among equals."""
        return best(dict(reversed(self.heights.items())))


def evaluate(
    models: Path,
    folder: Path,
    modality: str,
    encoder: Mapping[str, Any],
    protocol: Evaluation,
    *,
    mapped: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What scores.json and evaluate.json say of the weights in `models` on the data in `folder`.

    `encoder` is the encoder's block of plan.json, and `mapped` whether to make a map of the features, which takes as
    long as all probes. The status is ok, diverged (in pretraining, or features that are not finite), collapsed (see
    `symptom_of`) or unlabelled; what was not measured is null.
    Raises InputError for missing files, for weights that do not fit, and for a split without a labelled row.
    """
    devices.keep_freed_memory()
    devices.leave_compiler_out()
    data = manifest(folder)
    measured = {"status": "diverged"}
    if how_it_ended(models)["status"] != "diverged":
        network = load(models / "encoder.safetensors", encoder, facts_of(data))
        measured = measure(Subject(network, modality, folder, protocol), mapped)
    scores, details = (
        {key: measured.get(key, none) for key, none in kind.items()} for kind in (SCORES, DETAILS | LISTS)
    )
    rows = {split: described["rows"] for split, described in data["splits"].items()}
    status = {"status": measured["status"]}
    details["low_label"] = measured.get("budgets", {})
    return status | scores, status | details | {"data": {"classes": data["classes"], "rows": rows}}


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


def measure(subject: Subject, mapped: bool) -> dict[str, Any]:
    """All that is measured, and a status. Accuracies are in percent."""
    train, validation = see(subject, "train"), see(subject, "validation")
    if not (train.finite() and validation.finite()):
        return {"status": "diverged"}
    found = health(subject, train)
    chosen = choose(subject, train, validation) if subject.classes else None
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
    found |= read_few(chosen, test)
    found |= read_transfer(subject, chosen, train, validation, test)
    found |= read_tuned(subject, chosen, test)
    found |= matched(subject, towers)
    found["clustering"] = clustering(test.deepest, test.labels, subject.classes)
    return found | {"map": map_of(test) if mapped and found["status"] == "ok" else {}}


def health(subject: Subject, train: Split) -> dict[str, Any]:
    """What the features of train are like, and whether they have collapsed. No label is read."""
    deepest = train.deepest
    rank, spreading = effective_rank(deepest), spread(deepest)
    symptom = symptom_of(rank, spreading, subject.protocol)
    sphere = deepest[evenly(range(len(deepest)), SPHERE)]
    return {
        "status": "collapsed" if symptom else "ok" if subject.classes else "unlabelled",
        "symptom": symptom,
        "effective_rank": rank,
        "spread": spreading,
        "dead": dead(deepest),
        "uniformity": uniformity(sphere),
        "features": deepest.shape[1],
        **view_measures(subject, train),
    }


def symptom_of(rank: float, spreading: float, protocol: Evaluation) -> str | None:
    """In words, which of the protocol's thresholds features lie below: then they are collapsed. Else None."""
    values = {
        "effective rank": (rank, protocol.collapsed_rank),
        "spread": (spreading, protocol.collapsed_spread),
    }
    return (
        " and ".join(f"{name} {x:.2g} is below {least:g}" for name, (x, least) in values.items() if x < least) or None
    )


def view_measures(subject: Subject, train: Split) -> dict[str, float]:
    """LiDAR and alignment, of seeded views of train's rows; nothing for a modality without `distorted`."""
    if not hasattr(subject.look, "distorted"):
        return {}
    rows = train.rows[evenly(range(len(train.rows)), OBJECTS)]
    columns = Columns(subject.folder / "train", subject.look.columns, subject.device)
    torch.manual_seed(0)
    views = []
    with torch.inference_mode():
        for _ in range(VIEWS):
            towers = subject.look.embed(subject.encoder, subject.look.distorted(columns.rows(rows)))
            views.append(next(reversed(next(iter(towers.values())).values())).float())
    views = torch.stack(views, dim=1)  # (objects, views, D)
    pairs = views.unflatten(1, (-1, 2)).flatten(0, 1)  # (objects * views / 2, 2, D)
    return {"lidar": lidar(views), "alignment": alignment(*pairs.unbind(1))}


def choose(subject: Subject, train: Split, validation: Split) -> Choices:
    """Everything that is to be chosen, from train and validation alone."""
    protocol, classes = subject.protocol, subject.classes
    few = protocol.low_label
    return Choices(
        depths={
            depth: linear.choose(train.at(depth), validation.at(depth), strengths=protocol.strengths, classes=classes)
            for depth in train.depths
        },
        votes=knn.scores(
            train.last, validation.last, ks=protocol.neighbours, temperature=protocol.temperature, classes=classes
        ),
        few=low_label.choose(train.last, validation.last, classes=classes, **few.model_dump()) if few else {},
        moved=choose_transfer(subject, train, validation),
        tuned=tune(subject, train, validation),
    )


def read_probes(subject: Subject, chosen: Choices, train: Split, validation: Split, test: Split) -> dict[str, Any]:
    """The linear probe, at the deepest features and at the depth that was chosen, and k-NN."""
    classes, temperature = subject.classes, subject.protocol.temperature
    (*_, last), depth = train.depths, chosen.depth
    probes = {
        at: linear.read(chosen.depths[at], *(split.at(at) for split in (train, validation, test)), classes=classes)
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
            "transfer_strength": chosen.moved.strength if chosen.moved else None,
            "epoch": chosen.tuned.epoch if chosen.tuned else None,
        },
        "depths": chosen.heights,
        "probe": [{"strength": strength, "validation": score} for strength, score in probe.curve.items()],
        "confusion": confusion(probe.predicted, test.labels, classes),
    }


def score(name: str, test: float, validation: float, rows: int) -> dict[str, float]:
    """An accuracy with its validation accuracy and its error."""
    return {name: test, f"{name}_validation": validation, f"{name}_error": standard_error(test, rows)}


def read_few(chosen: Choices, test: Split) -> dict[str, Any]:
    """The linear probe with few labels."""
    found = low_label.read(chosen.few, test.last)
    if FEWEST not in found:
        return {"budgets": found}
    mean = found[FEWEST]["accuracy"]
    return {"low_label": mean, "low_label_error": standard_error(mean, len(test.labels)), "budgets": found}


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
    if chosen.moved is None:
        return {}
    known = [relabelled(subject, split) for split in (train, validation, test)]
    probe = linear.read(chosen.moved, *known, classes=numbered(*known[:2]), change=linear.COARSE)
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


def tune(subject: Subject, train: Split, validation: Split) -> finetune.Tuned | None:
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
    )


def read_tuned(subject: Subject, chosen: Choices, test: Split) -> dict[str, Any]:
    """The accuracy of the fine-tuned encoder."""
    tuned = chosen.tuned
    if tuned is None:
        return {}
    reached = finetune.score(tuned.network, examples(subject, test), subject.protocol.batch_size)
    curve = [{"epoch": epoch, "validation": accuracy} for epoch, accuracy in tuned.curve.items()]
    return score("finetune", reached, tuned.curve[tuned.epoch], len(test.labels)) | {"finetune_curve": curve}


def matched(subject: Subject, towers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """How often test rows find their partners, for each pairing that the modality has, {"sound to film": {"r1": ...}};
    and where classes have prompts, how often a row finds its class by name. `towers` has all rows of test.

    Nothing for a modality without `partners`.
    """
    look, folder, device = subject.look, subject.folder, subject.device
    if not hasattr(look, "partners"):
        return {}
    others = [name for name in getattr(look, "other_columns", ()) if (folder / "test" / f"{name}.npy").exists()]
    columns = Columns(folder / "test", [*look.partner_columns, *others], device).columns
    sought = look.partners(towers, columns)
    found = {"retrieval": {name: retrieval(**parts) for name, parts in sought.items()}}
    if (folder / "prompts").exists():
        prompts = Columns(folder / "prompts", ("token", "label"), device).columns
        labels = Columns(folder / "test", ("label",), device).columns["label"]
        with torch.inference_mode():
            named = look.named(subject.encoder, towers, prompts)
        if named:
            found["zero_shot"] = zero_shot(named[0], labels, named[1].float(), prompts["label"])
    return found


def map_of(test: Split) -> dict[str, list[float] | list[int]]:
    """Where some rows of test lie on a map of the features, and their labels."""
    places = evenly(range(len(test.rows)), MAPPED)
    x, y = scatter(test.deepest[places])
    return {"x": x, "y": y, "label": test.labels[places].tolist()}


def neighbours(subject: Subject, train: Split, test: Split) -> dict[str, Any] | None:
    """Some pictures of test that may be shown, each before the nearest of train that may be shown, as WebP.

    None where there are no such pictures.
    """
    if "image" not in subject.look.columns:
        return None
    banked, known = shown(subject, train), shown(subject, test)
    if not banked or not known:
        return None
    asked = Random(0).sample(known, min(ASKED, len(known)))  # not evenly: rows of many data sets come in an order
    found = nearest(test.deepest[asked], train.deepest[banked], NEAREST).cpu()
    bank, queries = (Columns(subject.folder / split.name, ("image",), subject.device) for split in (train, test))
    rows = train.rows[banked]
    lines = [
        torch.cat([query[None], bank.rows(rows[near])["image"]]) / 255
        for query, near in zip(queries.rows(test.rows[asked])["image"], found, strict=True)
    ]
    return {"webp": sheet(lines), "queries": len(lines)}


def shown(subject: Subject, split: Split) -> list[int]:
    """The places in a split's rows of those that figures may show."""
    if "show" not in subject.data:
        return list(range(len(split.rows)))
    allowed = set(subject.data["show"][split.name])
    return [place for place, row in enumerate(split.rows.tolist()) if row in allowed]
