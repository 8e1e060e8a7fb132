"""Results as MLflow's runs. The files under metrics/ and reports/ are the truth; no stage reads from here.

An experiment per modality. Per entry a run with its settings and means, and below it one per seed: the same settings,
its curves, its accuracies and what it cost, so that any runs compare. Per sweep a run, and below it one per trial.

Whatever is written a second time stays as it is: a run is known by what its result depends on, and what it was last
written from. So stages write when they end, and `python -m stages.track` writes whatever is missing.
"""

import base64
import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..common.progress import Progress
from ..reporting.statistics import estimate
from ..training.devices import key_of
from . import store

BATCH = 800  # points in a request; MLflow takes 1000 things, settings and tags included
OFTEN = 10.0  # seconds between two looks at a curve that grows
PICTURES = ("panel", "views")

Point = tuple[str, float, int, int]  # of a curve: its name, the value, milliseconds since 1970, the step


def read(*parts: str) -> Any:
    return json.loads(Path(*parts).read_text(encoding="utf-8"))


@store.harmless
def write_entry(modality: str, name: str) -> None:
    """An entry and its seeds, as far as files of them are there. What was written before is completed, or left alone.

    Skips results of other settings than plan.json has by now.
    """
    files = sorted(Path("metrics", modality, name, "pretrain").glob("*.json"))
    planned, runs = read("plan.json")["pretrain"][modality][name], {file.stem: read(file) for file in files}
    runs = {seed: run for seed, run in runs.items() if run["provenance"]["config"] == config_of(planned)}
    if not runs:
        return
    provenance = next(iter(runs.values()))["provenance"]
    entry = Entry(modality, name, planned, provenance["code"], provenance["data"])
    with store.opened(modality) as (client, experiment):
        runs = {seed: Seed(entry, seed, run) for seed, run in runs.items()}
        parent = entry.parent(client, experiment, min(run.start for run in runs.values()))
        written = key_of([run.written for run in runs.values()])
        if is_written(parent, written):
            return
        children = children_of(client, experiment, parent, "seed")
        for seed, run in runs.items():
            child = children.get(seed) or entry.child(client, experiment, parent, seed, run.start)
            if not is_written(child, run.written):
                run.write(client, child)
        statuses = Counter(run.status for run in runs.values())
        status = run.status if len(statuses) == 1 else ", ".join(f"{count} {what}" for what, count in statuses.items())
        log(
            client,
            parent,
            metrics=means([run.metrics for run in runs.values()]),
            tags={"status": status, "written": written},
        )
        client.set_terminated(parent.info.run_id, end_time=max(run.end for run in runs.values()))


class Entry:
    """One row of the table, as MLflow is to know it."""

    def __init__(self, modality: str, name: str, planned: Mapping[str, Any], code: str, data: str):
        self.modality, self.name, self.data = modality, name, data
        self.params = params_of(planned)
        self.tags = {
            "modality": modality,
            "entry": name,
            "family": planned["family"],
            "method": planned["method"],
            "data": read("plan.json")["prepare"][modality]["data"],
            "code": code,
            "key": key_of([modality, name, config_of(planned), code, data]),
        }

    def parent(self, client: Any, experiment: str, start: int) -> Any:
        found = client.search_runs([experiment], f"tags.key = '{self.tags['key']}' and tags.kind = 'entry'")
        return found[0] if found else self.create(client, experiment, self.name, start, {"kind": "entry"}, self.params)

    def child(self, client: Any, experiment: str, parent: Any, seed: str, start: int) -> Any:
        tags = {"kind": "seed", "seed": seed, "mlflow.parentRunId": parent.info.run_id}
        return self.create(client, experiment, f"{self.name} {seed}", start, tags, {**self.params, "seed": seed})

    def create(self, client: Any, experiment: str, title: str, start: int, tags: dict, params: dict) -> Any:
        run = create(client, experiment, title, start, {**self.tags, **tags})
        log(client, run, params=params)
        dataset(client, run, self.tags["data"], self.data, f"data/{self.modality}")
        return run


class Seed:
    """What one seed left in files."""

    def __init__(self, entry: Entry, seed: str, pretrained: dict[str, Any]):
        evaluation = Path("metrics", entry.modality, entry.name, "evaluate", f"{seed}.json")
        evaluated = read(evaluation) if evaluation.exists() else {}
        self.encoder = Path("models", entry.modality, entry.name, seed, "encoder.safetensors")
        self.pictures = {f"{name}.webp": found["webp"] for name in PICTURES if (found := pretrained[name])}
        self.curve, self.key = pretrained["curve"], pretrained.get("key", "")
        self.status = evaluated.get("status", pretrained["status"])
        self.written = key_of([pretrained, evaluated, self.encoder.exists()])
        cost, measures = numbers(pretrained), numbers(evaluated)
        measures["evaluation_seconds"] = measures.pop("seconds", None)
        held_out = {f"held_out/{name}": value for name, value in pretrained["held_out"].items()}
        found = {**cost, **measures, **held_out, "loss": None, "step": None}  # the loss has a curve
        self.metrics = {name: value for name, value in found.items() if value is not None}
        self.start, self.trained = (1000 * moment for moment in pretrained["clock"])
        self.end = 1000 * evaluated["clock"][1] if evaluated else self.trained

    def write(self, client: Any, run: Any) -> None:
        points = points_of(self.curve, self.start, self.trained)
        tags = {"status": self.status, "written": self.written} | ({"key": self.key} if self.key else {})
        artifacts(client, run, [self.encoder] if self.encoder.exists() else [], self.pictures)
        log(client, run, new(client, run, points), self.metrics, tags=tags)
        client.set_terminated(run.info.run_id, end_time=self.end)


class Live:
    """Shows the curves of an entry's seeds while they train. `write_entry` completes the same runs."""

    def __init__(self, modality: str, name: str, seeds: Iterable[int]):
        self.of, self.seeds = (modality, name), [str(seed) for seed in seeds]
        self.waiting: dict[str, list[Point]] = {seed: [] for seed in self.seeds}
        self.last: dict[str, dict[str, int]] = {}
        self.sent = time.monotonic()

    @store.harmless
    def log(self, seed: int, point: Mapping[str, float]) -> None:
        """A point of a seed's curve: `step`, `loss`, and whatever stands beside it. Sent with others, now and then."""
        self.waiting[str(seed)] += points_of([point], now(), now())
        if time.monotonic() - self.sent > OFTEN:
            self.flush()
            self.sent = time.monotonic()

    def flush(self) -> None:
        modality, name = self.of
        planned, data = read("plan.json")["pretrain"][modality][name], read("data", modality, "manifest.json")["hash"]
        entry = Entry(modality, name, planned, planned["code"], data[:12])
        with store.opened(modality) as (client, experiment):
            parent = entry.parent(client, experiment, now())
            children = children_of(client, experiment, parent, "seed")
            for seed, points in self.waiting.items():
                if points:
                    child = children.get(seed) or entry.child(client, experiment, parent, seed, now())
                    log(client, child, new(client, child, points))
                    points.clear()


@store.harmless
def write_sweep(modality: str, name: str) -> None:
    """A sweep and its trials. One that has more trials than before gets those added."""
    folder = Path("reports/sweeps", modality, name)
    if not (folder / "study.json").exists():
        return
    planned, study = read("plan.json")["sweep"][modality][name], read(folder, "study.json")
    entry, trials = planned["entry"], pd.read_csv(folder / "trials.csv")
    axes = list(planned["sweep"]["space"])
    same = {k: v for k, v in planned["sweep"].items() if k not in ("trials", "storage")}
    key = key_of([modality, name, entry, same, trials.iloc[0][["value", *axes]].astype(str).to_dict()])
    tags = {"modality": modality, "entry": name, "family": entry["family"], "method": entry["method"]}
    common = {"method": entry["method"], "family": entry["family"], "epochs": f"{study['epochs']:g}"}
    common["encoder"] = entry["encoder"]["name"]
    end = int(1000 * (folder / "trials.csv").stat().st_mtime)  # that of each trial is not known, but how long it took
    ends = end - (1000 * trials["seconds"][::-1].cumsum()[::-1].shift(-1, fill_value=0)).astype(int)
    with store.opened(modality) as (client, experiment):
        found = client.search_runs([experiment], f"tags.key = '{key}' and tags.kind = 'study'")
        start = end - int(1000 * trials["seconds"].sum())
        title = f"{name} sweep"
        parent = found[0] if found else create(client, experiment, title, start, {**tags, "kind": "study", "key": key})
        written = key_of([study, trials.astype(str).to_dict("records")])
        if is_written(parent, written):
            return
        children = children_of(client, experiment, parent, "key")
        for trial, ended in zip(trials.to_dict("records"), ends, strict=True):
            own = {axis: str(trial[axis]) for axis in axes}
            of = {**tags, "kind": "trial", "key": key_of([key, trial["number"], own])}
            of["mlflow.parentRunId"] = parent.info.run_id
            began, title = int(ended - 1000 * trial["seconds"]), f"{name} trial {trial['number']}"
            run = children.get(of["key"]) or create(client, experiment, title, began, of)
            metrics = {"seconds": trial["seconds"]} | (
                {"validation": trial["value"]} if trial["state"] == "complete" else {}
            )
            marks = {
                "status": "ok" if metrics.keys() > {"seconds"} else "diverged",
                "best": str(trial["number"] == study["best_trial"]).lower(),
            }
            log(client, run, metrics=metrics, params=common | own, tags=marks)
            client.set_terminated(run.info.run_id, end_time=int(ended))
        metrics = {"validation": study["best_value"], "default_validation": study["default_value"]}
        metrics |= numbers(study | {"seconds": float(trials["seconds"].sum())})
        log(client, parent, metrics=metrics, params=common, tags={"status": "ok", "written": written})
        client.set_terminated(parent.info.run_id, end_time=end)


def write_all() -> None:
    """Every entry and every sweep that has files."""
    plan = read("plan.json")
    rows = [
        (write, modality, name)
        for stage, write in WRITERS.items()
        for modality in plan[stage]
        for name in plan[stage][modality]
    ]
    shown = Progress("MLflow", len(rows), "entries")
    for write, modality, name in rows:
        write(modality, name)
        shown.advance(1)
    shown.close()


WRITERS = {"pretrain": write_entry, "sweep": write_sweep}  # by their part of plan.json


# ---- What files hold, as MLflow takes it


def config_of(planned: Mapping[str, Any]) -> str:
    """As in a result's provenance: what stands for the settings."""
    return key_of({key: value for key, value in planned.items() if key != "code"})


def params_of(planned: Mapping[str, Any]) -> dict[str, str]:
    """An entry's settings under their plain names; those of the encoder after `encoder.`."""
    encoder = {f"encoder.{key}": value for key, value in planned["encoder"].items()}
    params = {**planned["training"], **planned["hyper"], **encoder, "encoder": encoder.pop("encoder.name")}
    params |= {"method": planned["method"], "family": planned["family"]}
    return {key: str(value) for key, value in params.items() if value is not None}


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def means(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each metric over the seeds that have it; from three on, also half its 95 % interval."""
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        over = estimate([run[name] for run in runs if name in run])
        found[name] = over.mean
        if over.half_width is not None:
            found[f"{name}_ci95"] = over.half_width
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


# ---- What MLflow is told


def now() -> int:
    """As MLflow counts: milliseconds since 1970."""
    return int(time.time() * 1000)


def is_written(run: Any, written: str) -> bool:
    return run.info.status == "FINISHED" and run.data.tags.get("written") == written


def children_of(client: Any, experiment: str, parent: Any, tag: str) -> dict[str, Any]:
    """The runs below another, by one of their tags."""
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return {run.data.tags[tag]: run for run in found}


def create(client: Any, experiment: str, title: str, start: int, tags: Mapping[str, str]) -> Any:
    return client.create_run(experiment, start_time=start, tags={**tags, **commit()}, run_name=title)


def commit() -> dict[str, str]:
    """The tag that names the commit, where git knows one."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {} if asked.returncode else {"mlflow.source.git.commit": asked.stdout.strip()}


def log(
    client: Any,
    run: Any,
    points: Iterable[Point] = (),
    metrics: Mapping[str, float] = {},
    params: Mapping[str, str] = {},
    tags: Mapping[str, str] = {},
) -> None:
    """Adds points of curves, and what is new of the rest; the tags come with the last of it."""
    from mlflow.entities import Metric, Param, RunTag

    changed = [(name, float(value), now(), 0) for name, value in metrics.items() if run.data.metrics.get(name) != value]
    every = [Metric(*point) for point in [*points, *changed]]
    for at in range(0, len(every) - BATCH, BATCH):
        client.log_batch(run.info.run_id, metrics=every[at : at + BATCH])
    rest = every[(max(0, len(every) - 1) // BATCH) * BATCH :]
    missing = [Param(*item) for item in params.items() if item[0] not in run.data.params]
    client.log_batch(run.info.run_id, metrics=rest, params=missing, tags=[RunTag(*item) for item in tags.items()])


def new(client: Any, run: Any, points: list[Point]) -> list[Point]:
    """Those points that come after what the run's curves have already."""
    last = {
        name: max(point.step for point in client.get_metric_history(run.info.run_id, name))
        for name in {name for name, *_ in points} & run.data.metrics.keys()
    }
    return [point for point in points if point[3] > last.get(point[0], -1)]


def dataset(client: Any, run: Any, name: str, digest: str, source: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(name, digest, source_type="local", source=json.dumps({"uri": source}))
    client.log_inputs(run.info.run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def artifacts(client: Any, run: Any, files: list[Path], pictures: Mapping[str, str]) -> None:
    """Keeps files and pictures, given in base64, with the run, unless it has them."""
    there = {file.path for file in client.list_artifacts(run.info.run_id)} if run.data.tags.get("written") else ()
    with tempfile.TemporaryDirectory() as folder:
        for name, picture in pictures.items():
            files = [*files, Path(folder, name)]
            files[-1].write_bytes(base64.b64decode(picture))
        for file in files:
            if file.name not in there:
                client.log_artifact(run.info.run_id, str(file))
