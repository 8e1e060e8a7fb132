"""Results as MLflow's runs. The files under metrics/ and reports/ are the truth; no stage reads from here.

An experiment per modality. Per entry a run with its settings and means, and below it one per seed: the same settings,
its curves, its accuracies and its cost, so that any runs compare. Per sweep a run, and below it one per trial.

What is written again stays as it is: a run is known by what its result depends on, and by what it was last written
from. So stages write when they end, and `python -m stages.track` writes whatever is missing.
"""

import base64
import csv
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.files import read_json
from ..common.progress import Progress
from ..reporting.statistics import estimate
from ..training.devices import key_of
from . import store
from .store import Point, Run

PLAN = Path("plan.json")
OFTEN = 10.0  # seconds between two looks at a curve that grows
DIGITS = 4  # of means, so that the columns of a table can be read
PICTURES = ("panel", "views")


@store.harmless
def write_entry(modality: str, name: str) -> None:
    """An entry and its seeds, as far as files of them are there. What was written before is completed, or left alone.

    Results of other settings than plan.json has by now are passed over.
    """
    plan, found = read_json(PLAN), {}
    planned = plan["pretrain"][modality][name]
    for file in sorted(Path("metrics", modality, name, "pretrain").glob("*.json")):
        pretrained = read_json(file)
        if pretrained["provenance"]["config"] == config_of(planned):
            found[file.stem] = pretrained
    if not found:
        return
    made = next(iter(found.values()))["provenance"]
    entry = Entry(modality, name, planned, plan["prepare"][modality]["data"], made["code"], made["data"])
    seeds = [entry.finished(seed, pretrained) for seed, pretrained in found.items()]
    parent = entry.run(min(seed.start for seed in seeds))
    parent.end = max(seed.end for seed in seeds)
    parent.metrics = means([seed.metrics for seed in seeds])
    statuses = Counter(seed.tags["status"] for seed in seeds)
    mixed = ", ".join(f"{count} {status}" for status, count in statuses.items())
    parent.tags["status"] = mixed if len(statuses) > 1 else next(iter(statuses))
    store.write(modality, entry.key, [parent, *seeds])


@dataclass
class Entry:
    """One row of the table: its block of plan.json, its data set's name, and the hashes of its code and data."""

    modality: str
    name: str
    planned: Mapping[str, Any]
    source: str
    code: str
    data: str

    @property
    def key(self) -> str:
        return key_of([self.modality, self.name, config_of(self.planned), self.code, self.data])

    def run(self, start: int, seed: str | None = None) -> Run:
        """Its run, or that of a seed."""
        tags = {"modality": self.modality, "entry": self.name, "data": self.source, "code": self.code}
        tags |= {"family": self.planned["family"], "kind": "seed" if seed else "entry", "key": self.key}
        params = params_of(self.planned) | ({"seed": seed} if seed else {})
        title = f"{self.name} {seed}" if seed else self.name
        return Run(title, seed, start, tags, params, dataset=(self.source, self.data))

    def finished(self, seed: str, pretrained: dict[str, Any]) -> Run:
        """A seed's run, of what its pretraining and, where there is one, its evaluation left."""
        start, trained = (1000 * moment for moment in pretrained["clock"])
        evaluation = Path("metrics", self.modality, self.name, "evaluate", f"{seed}.json")
        evaluated = read_json(evaluation)
        run = self.run(start, seed)
        run.end = 1000 * evaluated["clock"][1] if evaluated else trained
        run.tags["status"] = evaluated.get("status", pretrained["status"])
        run.tags["key"] = pretrained.get("key", self.key)
        run.points = points_of(pretrained["curve"], start, trained)
        measures = {"evaluation_seconds" if name == "seconds" else name: v for name, v in numbers(evaluated).items()}
        held_out = {f"held_out/{name}": value for name, value in pretrained["held_out"].items()}
        found = {**numbers(pretrained), **measures, **held_out}
        run.metrics = {name: value for name, value in found.items() if name not in ("loss", "step")}  # it has a curve
        pictures = {name: found["webp"] for name in PICTURES if (found := pretrained[name])}
        run.files = {f"{name}.webp": base64.b64decode(picture) for name, picture in pictures.items()}
        encoder = Path("models", self.modality, self.name, seed, "encoder.safetensors")
        run.files |= {encoder.name: encoder} if encoder.exists() else {}
        return run


class Live:
    """Shows the curves of an entry's seeds while they train. `write_entry` completes the same runs."""

    def __init__(self, modality: str, name: str, seeds: Iterable[int]):
        self.modality, self.name = modality, name
        self.waiting: dict[int, list[Point]] = {seed: [] for seed in seeds}
        self.sent = time.monotonic()

    @store.harmless
    def log(self, seed: int, point: Mapping[str, float]) -> None:
        """A point of a seed's curve: `step`, `loss`, and whatever stands beside it. Sent with others, now and then."""
        self.waiting[seed] += points_of([point], store.now(), store.now())
        if time.monotonic() - self.sent > OFTEN:
            self.flush()
            self.sent = time.monotonic()

    def flush(self) -> None:
        plan, data = read_json(PLAN), read_json(Path("data", self.modality, "manifest.json"))["hash"][:12]
        planned, source = plan["pretrain"][self.modality][self.name], plan["prepare"][self.modality]["data"]
        entry, runs = Entry(self.modality, self.name, planned, source, planned["code"], data), []
        for seed, points in self.waiting.items():
            if points:
                runs.append(entry.run(store.now(), str(seed)))
                runs[-1].points = points
        store.write(self.modality, entry.key, [entry.run(store.now()), *runs])
        self.waiting = {seed: [] for seed in self.waiting}


@store.harmless
def write_sweep(modality: str, name: str) -> None:
    """A sweep and its trials. One that has more trials than before gets those added."""
    folder, plan = Path("reports/sweeps", modality, name), read_json(PLAN)
    if not (folder / "study.json").exists():
        return
    planned, study = plan["sweep"][modality][name], read_json(folder / "study.json")
    with (folder / "trials.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    same = {key: value for key, value in planned["sweep"].items() if key not in ("trials", "storage")}
    key = key_of([modality, name, planned | {"sweep": same}, plan["prepare"][modality]])
    entry = planned["entry"]
    tags = {"modality": modality, "entry": name, "family": entry["family"], "code": planned["code"], "key": key}
    params = {"method": entry["method"], "family": entry["family"], "encoder": entry["encoder"]["name"]}
    params["epochs"] = str(study["epochs"])
    end = int(1000 * (folder / "trials.csv").stat().st_mtime)  # what is known of each trial is how long it took
    moment = end - sum(int(1000 * float(row["seconds"])) for row in rows)
    parent = Run(f"{name} sweep", None, moment, tags | {"kind": "study", "status": "ok"}, params, end=end)
    parent.metrics = numbers({**study, "validation": study["best_value"]})
    trials = []
    for row in rows:
        number, state, value, seconds = (row.pop(column) for column in ("number", "state", "value", "seconds"))
        own = {"kind": "trial", "status": "ok" if state == "complete" else state, "key": key_of([key, number])}
        own["best"] = str(number == str(study["best_trial"])).lower()
        trial = Run(f"{name} trial {number}", number, moment, tags | own, params | row)
        trial.metrics = {"seconds": float(seconds)} | ({"validation": float(value)} if value else {})
        trial.end = moment = moment + int(1000 * float(seconds))
        trials.append(trial)
    store.write(modality, key, [parent, *trials])


def write_all() -> None:
    """Every entry and every sweep that has files."""
    plan = read_json(PLAN)
    writers = {"pretrain": write_entry, "sweep": write_sweep}
    rows = [(stage, modality, name) for stage in writers for modality in plan[stage] for name in plan[stage][modality]]
    shown = Progress("MLflow", len(rows), "entries")
    for stage, modality, name in rows:
        writers[stage](modality, name)
        shown.advance(1)
    shown.close()


def config_of(planned: Mapping[str, Any]) -> str:
    """What stands for the settings, as in the provenance of results."""
    return key_of({key: value for key, value in planned.items() if key != "code"})


def params_of(planned: Mapping[str, Any]) -> dict[str, str]:
    """An entry's settings under their plain names; those of its encoder after `encoder.`."""
    encoder = {"encoder" if key == "name" else f"encoder.{key}": value for key, value in planned["encoder"].items()}
    params = {**planned["training"], **planned["hyper"], **encoder}
    params |= {"method": planned["method"], "family": planned["family"]}
    return {key: str(value) for key, value in params.items() if value is not None}


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def means(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each metric over the seeds that have it; from three on, also half its 95 % interval."""
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        over = estimate([run[name] for run in runs if name in run])
        found[name] = round(over.mean, DIGITS)
        if over.half_width is not None:
            found[f"{name}_ci95"] = round(over.half_width, DIGITS)
    return found


def points_of(curve: list[Mapping[str, float]], start: int, end: int) -> list[Point]:
    """A curve's points, spread over the time that it took. What stands beside the loss is named `train/...`."""
    last = max(1, curve[-1]["step"]) if curve else 1
    return [
        (name if name == "loss" else f"train/{name}", value, int(start + (end - start) * point["step"] / last), step)
        for point in curve
        for step in [int(point["step"])]
        for name, value in point.items()
        if name not in ("step", "samples")
    ]
