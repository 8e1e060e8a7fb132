"""What is told of an encoder beside its accuracies: whether its features have collapsed, how often a row finds its
partner, and what people look at (the nearest neighbours of pictures, a map).
"""

from collections.abc import Mapping
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from ..common.settings import Evaluation
from ..training.columns import Columns
from ..training.panels import evenly, sheet
from .frozen import Split, Subject
from .health import alignment, dead, effective_rank, lidar, spread, uniformity
from .retrieval import retrieval
from .zero_shot import zero_shot

OBJECTS, VIEWS = 500, 10  # of train, and of each, for the measures that compare views; even, as they come in pairs
SPHERE = 2048  # rows of train whose pairs tell uniformity
MAPPED = 500  # rows of test on the map
PERPLEXITY = 30  # about as many neighbours as each row keeps on it; the paper's range is 5 to 50
QUERIES, NEAREST = 6, 7  # pictures of test, and the nearest of train to each, on the sheet


def health(subject: Subject, train: Split) -> dict[str, Any]:
    """What the features of train are like, and whether they have collapsed. No label is read."""
    deepest = train.deepest
    rank, spreading = effective_rank(deepest), spread(deepest)
    symptom = symptom_of(rank, spreading, subject.protocol)
    return {
        "status": "collapsed" if symptom else "ok" if subject.classes else "unlabelled",
        "symptom": symptom,
        "effective_rank": rank,
        "spread": spreading,
        "dead": dead(deepest),
        "uniformity": uniformity(deepest[evenly(range(len(deepest)), SPHERE)]),
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


def partners(subject: Subject, towers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
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


def neighbours(subject: Subject, train: Split, test: Split) -> dict[str, Any] | None:
    """Some pictures of test that may be shown, each before the nearest of train that may be shown, as WebP.

    None where there are no such pictures.
    """
    if "image" not in subject.look.columns:
        return None
    bank, known = shown(subject, train), shown(subject, test)
    if not bank or not known:
        return None
    queries = Random(0).sample(known, min(QUERIES, len(known)))  # not evenly: rows of many data sets come in an order
    found = nearest(test.deepest[queries], train.deepest[bank], NEAREST).cpu()
    trained, tested = (Columns(subject.folder / split.name, ("image",), subject.device) for split in (train, test))
    rows = train.rows[bank]
    lines = [
        torch.cat([query[None], trained.rows(rows[near])["image"]]) / 255
        for query, near in zip(tested.rows(test.rows[queries])["image"], found, strict=True)
    ]
    return {"webp": sheet(lines), "queries": len(lines)}


def shown(subject: Subject, split: Split) -> list[int]:
    """The places in a split's rows of those that figures may show."""
    if "show" not in subject.data:
        return list(range(len(split.rows)))
    allowed = set(subject.data["show"][split.name])
    return [place for place, row in enumerate(split.rows.tolist()) if row in allowed]


def nearest(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """The rows of the bank (M, D) nearest to each query (N, D) by the cosine, nearest first: (N, min(k, M)) int64."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    return similarity.topk(min(k, len(bank)), dim=1).indices


def map_of(test: Split) -> dict[str, list[float] | list[int]]:
    """Where some rows of test lie on a map of the features, and their labels."""
    places = evenly(range(len(test.rows)), MAPPED)
    x, y = tsne(test.deepest[places])
    return {"x": x, "y": y, "label": test.labels[places].tolist()}


def tsne(features: Tensor) -> tuple[list[float], list[float]]:
    """Features (N, D), N at least 4 and D at least 2, not all alike, to x and y (N,), rounded.

    Van der Maaten, Hinton. Visualizing Data using t-SNE. JMLR 2008. https://www.jmlr.org/papers/v9/vandermaaten08a.html
    Near rows stay near; distances, directions and the sizes of groups mean nothing.
    """
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    with threadpool_limits(1):  # with several threads, sums differ from run to run
        found = TSNE(init="pca", perplexity=perplexity, random_state=0, max_iter=500, n_jobs=1)
        places = found.fit_transform(features.float().cpu().numpy())  # (N, 2)
    return tuple([round(float(value), 2) for value in axis] for axis in places.T)
