"""What the runs left behind, read for the report: the entries and seeds of params.yaml, never what else lies around."""

import ast
import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..common import settings
from ..common.files import read_json
from ..common.settings import InputError

MISSING, UNEVALUATED, DIVERGED, COLLAPSED = "missing", "not evaluated", "diverged", "collapsed"
OK, UNLABELLED = "ok", "unlabelled"  # the second where the data have no labels
CONTROLS = "baselines"  # the family of the entries that are no self-supervised method
PAPER_URL = re.compile(r"https?://(?:arxiv\.org|(?:dx\.)?doi\.org)/[^\s<>()\[\]{},;\"']+")


@dataclass(frozen=True)
class Run:
    """One entry under one seed: the contents of its two files, each empty where the file is not there (yet)."""

    seed: int
    pretrain: dict[str, Any]
    evaluate: dict[str, Any]

    @property
    def status(self) -> str:
        if not self.pretrain:
            return MISSING
        if self.pretrain["status"] == DIVERGED:
            return DIVERGED
        return self.evaluate.get("status", UNEVALUATED)

    def value(self, measure: str) -> float | None:
        """A number of this run by its key; None where it was not measured."""
        return self.numbers.get(measure)

    @cached_property
    def numbers(self) -> dict[str, float]:
        """All that was measured, by its key in the run's files. `seconds` are pretraining's; where it diverged is none.

        Those of a group have its name before them, as in `held_out_loss`, `clustering_nmi`, `low_label 10 %_accuracy`
        and `sound to film_r1`.
        """
        groups = {"held_out": self.pretrain.get("held_out", {})}
        groups |= {name: self.evaluate.get(name, {}) for name in ("zero_shot", "clustering")}
        groups |= {f"low_label {name}": found for name, found in self.evaluate.get("low_label_details", {}).items()}
        groups |= self.evaluate.get("retrieval", {})
        grouped = {f"{group}_{name}": value for group, values in groups.items() for name, value in values.items()}
        every = grouped | self.evaluate | self.pretrain
        found = {key: value for key, value in every.items() if isinstance(value, int | float) and key != "step"}
        if {"method_parameters", "encoder_parameters"} <= found.keys():
            found["discarded_parameters"] = found["method_parameters"] - found["encoder_parameters"]
        return found

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """{stage: what it recorded}, of the stages that ran."""
        recorded = {"pretrain": self.pretrain, "evaluate": self.evaluate}
        return {stage: found for stage, found in recorded.items() if found}

    @property
    def curve(self) -> dict[float, float]:
        """{samples seen: loss}, without what is not finite."""
        rows = self.pretrain.get("curve", [])
        return {row["samples"]: row["loss"] for row in rows if math.isfinite(row["loss"])}


@dataclass(frozen=True)
class Source:
    """What a method's file says of itself."""

    path: str  # relative to the repository's root
    docstring: str
    idea: str  # its first clause
    url: str | None  # the paper's
    labelled: bool  # whether it reads the column "label"


@dataclass(frozen=True)
class Entry:
    """One row of the table: an entry of params.yaml with its resolved settings and a run per seed."""

    name: str
    method: str
    family: str
    encoder: dict[str, Any]
    hyper: dict[str, Any]
    training: dict[str, Any]
    source: Source
    runs: list[Run]

    @property
    def self_supervised(self) -> bool:
        return self.family != CONTROLS and not self.source.labelled

    @property
    def mark(self) -> bool:
        """Whether it is the floor or the ceiling that others are compared with."""
        return self.method == "untrained" or (self.family == CONTROLS and self.source.labelled)

    def values(self, measure: str) -> dict[int, float]:
        """{seed: value} of the runs in which it was measured."""
        found = {run.seed: run.value(measure) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Sweep:
    """reports/sweeps/<modality>/<entry>/; `study` is empty where the sweep has not run."""

    name: str
    study: dict[str, Any]
    trials: list[dict[str, str]]
    best: str
    figures: dict[str, str]  # {"importance": svg text}


@dataclass(frozen=True)
class Modality:
    name: str
    data: dict[str, Any]  # {"name", "settings", "classes", "rows"}; the last two empty where no run recorded them
    entries: list[Entry]
    sweeps: list[Sweep]

    @property
    def runs(self) -> Iterator[tuple[Entry, Run]]:
        return ((entry, run) for entry in self.entries for run in entry.runs)


@dataclass(frozen=True)
class Results:
    seeds: list[int]
    modalities: list[Modality]  # without those that have no entries


def read(root: Path) -> Results:
    """Everything the report shows, from params.yaml, plan.json, metrics/ and reports/sweeps/: files that are in git.

    Raises InputError when params.yaml is wrong or names no entry of any modality, when plan.json is older than it, and
    for a file that is not JSON.
    """
    params = settings.read(root / "params.yaml")
    named = [name for name, benchmark in params.benchmark.items() if benchmark.methods]
    if not named:
        raise InputError("benchmark: no modality has an entry, so there is nothing to report; name one under `methods`")
    plan = read_json(root / "plan.json")
    if not plan:
        raise InputError(f"{root / 'plan.json'} not found; run `dvc repro plan` to write it")
    return Results(params.seeds, [read_modality(root, name, params, plan) for name in named])


def read_modality(root: Path, modality: str, params: settings.Settings, plan: dict) -> Modality:
    benchmark = params.benchmark[modality]
    planned = plan["pretrain"].get(modality, {})
    for name in benchmark.methods:
        if name not in planned:
            raise InputError(
                f"plan.json has no entry {name!r} of {modality}, which params.yaml has; run `dvc repro plan`"
            )
    entries = [read_entry(root, modality, name, planned[name], params.seeds) for name in benchmark.methods]
    sweeps = [read_sweep(root / "reports/sweeps" / modality / name, name) for name in benchmark.sweeps]
    return Modality(modality, read_data(plan["prepare"][modality], entries), entries, sweeps)


def read_entry(root: Path, modality: str, name: str, planned: dict, seeds: list[int]) -> Entry:
    folder, runs = root / "metrics" / modality / name, []
    for seed in seeds:
        runs.append(Run(seed, *(read_shaped(folder / stage / f"{seed}.json", SHAPES[stage]) for stage in SHAPES)))
    family, method = planned["family"], planned["method"]
    source = read_source(root, f"ssl_methods/{family}/{method}.py")
    return Entry(name, method, family, *(planned[kind] for kind in ("encoder", "hyper", "training")), source, runs)


class Recorded(BaseModel):
    """What the report takes for granted in a run's files; whatever else is there may be anything."""

    model_config = ConfigDict(extra="allow")
    status: str
    provenance: dict[str, Any]


class Point(BaseModel):
    model_config = ConfigDict(extra="allow")
    samples: float
    loss: float


class Pretrain(Recorded):
    curve: list[Point] = Field(default_factory=list)
    held_out: dict[str, Any] = Field(default_factory=dict)


class Evaluate(Recorded):
    zero_shot: dict[str, Any] = Field(default_factory=dict)
    clustering: dict[str, Any] = Field(default_factory=dict)
    low_label_details: dict[str, dict[str, Any]] = Field(default_factory=dict)
    retrieval: dict[str, dict[str, Any]] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)


SHAPES = {"pretrain": Pretrain, "evaluate": Evaluate}


def read_shaped(path: Path, kind: type[Recorded]) -> dict[str, Any]:
    """A run's file, empty where there is none. Raises InputError, naming it, where no stage would have written it."""
    if found := read_json(path):
        settings.parse(kind, found, str(path))
    return found


def read_source(root: Path, path: str) -> Source:
    """Read without importing: it takes no part in what the method computes."""
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    docstring = ast.get_docstring(tree) or ""
    url = PAPER_URL.search(docstring)
    labelled = "label" in declared_columns(tree)
    return Source(path, docstring, first_clause(docstring), url and url.group().rstrip("."), labelled)


def first_clause(docstring: str) -> str:
    """The first sentence of the docstring, or what stands before its first semicolon."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r";|\.(?:\s|$)", paragraph)[0]


def declared_columns(tree: ast.Module) -> tuple[str, ...]:
    """The class attribute `columns` of the method in a syntax tree; empty where there is none."""
    lines = [line for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for line in node.body]
    given = [line for line in lines if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "columns"]
    return ast.literal_eval(given[0].value) if given else ()


def read_data(planned: dict, entries: list[Entry]) -> dict[str, Any]:
    """The data set's name and settings as planned; its classes and sizes as the first evaluation recorded them."""
    recorded = next((run.evaluate["data"] for entry in entries for run in entry.runs if "data" in run.evaluate), {})
    return {"name": planned["data"], "settings": planned["settings"], "classes": [], "rows": {}} | recorded


def read_sweep(folder: Path, name: str) -> Sweep:
    study = read_json(folder / "study.json")
    if not study:
        return Sweep(name, {}, [], "", {})
    with (folder / "trials.csv").open(newline="", encoding="utf-8") as file:
        trials = list(csv.DictReader(file))
    figures = {f: folder / f"{f}.svg" for f in ("importance", "slice", "parallel")}
    figures = {f: path.read_text(encoding="utf-8") for f, path in figures.items() if path.exists()}
    return Sweep(name, study, trials, (folder / "best.yaml").read_text(encoding="utf-8"), figures)
