"""MLflow's store: where it is, how it is opened, and what a fault of it costs: one warning, never a result.

The variable MLFLOW_TRACKING_URI names another store than mlflow.db, or a server that many machines share; at `off`
nothing is written, and mlflow not even imported.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.settings import InputError

OFF = "off"
COLUMNS = [
    *(f"metrics.`{name}`" for name in ("linear", "linear_ci95", "knn", "finetune", "validation", "seconds")),
    *(f"tags.`{name}`" for name in ("status", "family", "best")),
    *(f"params.`{name}`" for name in ("encoder", "temperature", "strength", "lr")),
]
VIEWS = {  # of an experiment's runs, offered in the UI under "Views"
    "methods": {"searchFilter": "tags.kind = 'entry'", "orderByKey": "metrics.`linear`", "orderByAsc": False},
    "everything": {"orderByKey": "attributes.start_time", "orderByAsc": False},  # seeds and trials unfold
}

Point = tuple[str, float, int, int]  # of a curve: its name, the value, milliseconds since 1970, the step
BATCH = 800  # points in a request; MLflow takes 1000 things, settings and tags included

_failed = False  # after one fault this process leaves MLflow alone


@dataclass
class Run:
    """A run as MLflow is to have it. Times are in milliseconds since 1970."""

    title: str
    number: str | None  # among those below the same run; None for the one above
    start: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    files: dict[str, Path | bytes] = field(default_factory=dict)  # where they lie, or what they hold, by name
    dataset: tuple[str, str] | None = None  # its name, and a hash of it
    end: int | None = None  # None while it goes on


def harmless(write: Callable[..., None]) -> Callable[..., None]:
    """Has `write` do nothing where tracking is off, and turns whatever it raises into a warning.

    After a fault of the store itself, this process writes nothing more; a damaged results file costs one entry.
    """

    @functools.wraps(write)
    def wrapped(*args: Any) -> None:
        global _failed
        if available():
            try:
                with warnings.catch_warnings(action="ignore"):  # deprecations in what mlflow imports
                    write(*args)
            except Exception as error:
                _failed = not isinstance(error, InputError)  # that is a damaged results file, and the store is well
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                told = f"not written to MLflow; results are not affected ({reason})"
                print(f"warning: {told}; `python -m stages.track` writes it later", file=sys.stderr, flush=True)

    return wrapped


def available() -> bool:
    """Whether there is a point in writing: tracking is not off, and nothing has failed so far."""
    return not _failed and os.environ.get("MLFLOW_TRACKING_URI") != OFF


def failed() -> bool:
    """Whether the store had a fault in this process."""
    return _failed


def now() -> int:
    return int(time.time() * 1000)


def address() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root() / 'mlflow.db'}"


def root() -> Path:
    """The repository, whose store `mlflow ui` opens: the current directory, as for params.yaml.

    `dvc exp run` may work in a temporary folder, <repository>/.dvc/tmp/...: that one's store would be lost with it.
    """
    here = Path.cwd()
    return next((folder.parent for folder in here.parents if folder.name == ".dvc"), here)


@contextlib.contextmanager
def opened(experiment: str) -> Iterator[tuple[Any, str]]:
    """A client of the store, and the id of the experiment; makes what is missing of either. Raises what MLflow raises.

    While it lasts no other process writes to the same file: of two that create it, or the same run, at once, one would
    fail, or double it.
    """
    for variable, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default a server out of reach holds up each call for four minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(variable, value)
    from mlflow import MlflowClient  # here, because what is set above counts as it is imported

    uri = address()
    file = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    with alone(file) if file else contextlib.nullcontext():
        client = MlflowClient(uri)
        yield client, experiment_of(client, experiment, file)


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Held by one process at a time. Raises OSError or sqlite3.Error where the file cannot be written to."""
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # what reads, as the UI does, and what writes do not wait
            database.execute("BEGIN IMMEDIATE")  # fails in seconds where MLflow would try for minutes
        yield


def experiment_of(client: Any, name: str, file: Path | None) -> str:
    """The experiment's id; made if need be."""
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":  # in the UI, by hand; its name is still taken
            client.restore_experiment(found.experiment_id)
        return found.experiment_id
    # By default artifacts would lie relative to whichever process came first. A server has its own place for them.
    artifacts = (root() / "mlartifacts").as_uri() if file else None
    tags = {}
    for view, state in VIEWS.items():
        saved = {"name": view, "createdAt": now(), "state": json.dumps({**state, "selectedColumns": COLUMNS})}
        tags[f"mlflow.sharedViewState.{view}"] = json.dumps(saved)
    return client.create_experiment(name, artifact_location=artifacts, tags=tags)


def write(experiment: str, group: str, runs: list[Run]) -> None:
    """Writes a run and those below it, the first of `runs` and the others; `group` is the key of them all together."""
    with opened(experiment) as (client, identifier):
        found = client.search_runs([identifier], f"tags.`group` = '{group}'", max_results=50_000)
        there = {run.data.tags.get("number"): run for run in found}
        above: dict[str, str] = {}
        for run in runs:
            stored = there.get(run.number) or create(client, identifier, run, {"group": group, **above})
            complete(client, stored, run)
            above = above or {"mlflow.parentRunId": stored.info.run_id}


def create(client: Any, experiment: str, run: Run, tags: dict[str, str]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no repository
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        tags |= {"mlflow.source.git.commit": found.stdout.strip()}
    if run.number:
        tags |= {"number": run.number}
    stored = client.create_run(experiment, start_time=run.start, tags=run.tags | tags, run_name=run.title)
    if run.dataset:
        source = json.dumps({"uri": f"data/{run.tags['modality']}"})
        data = Dataset(*run.dataset, source_type="local", source=source)
        inputs = [DatasetInput(data, [InputTag("mlflow.data.context", "training")])]
        client.log_inputs(stored.info.run_id, datasets=inputs)
    return stored


def complete(client: Any, stored: Any, run: Run) -> None:
    """Adds to a stored run what it lacks; the tag `written` comes last, and stands for all of it."""
    from mlflow.entities import Metric, Param, RunTag

    identifier, had = stored.info.run_id, stored.data
    written = hashlib.sha256(repr(run).encode()).hexdigest()[:12]
    if stored.info.status == "FINISHED" and had.tags.get("written") == written:
        return
    if run.files:
        keep(client, identifier, run.files)
    last = {  # step and time of each curve that is there
        name: max((point.step, point.timestamp) for point in client.get_metric_history(identifier, name))
        for name in {name for name, *_ in run.points} & had.metrics.keys()
    }
    metrics = []
    for name, value, moment, step in run.points:
        reached, before = last.get(name, (-1, 0))
        if step > reached:
            metrics.append(Metric(name, value, max(moment, before), step))
    metrics += [Metric(name, v, now(), 0) for name, v in run.metrics.items() if had.metrics.get(name) != v]
    params = [Param(*item) for item in run.params.items() if item[0] not in had.params]
    tags = [RunTag(*item) for item in {**run.tags, **({"written": written} if run.end else {})}.items()]
    while len(metrics) > BATCH:
        client.log_batch(identifier, metrics=metrics[:BATCH])
        metrics = metrics[BATCH:]
    client.log_batch(identifier, metrics, params, tags)
    if run.end:
        client.set_terminated(identifier, end_time=run.end)


def keep(client: Any, identifier: str, files: Mapping[str, Path | bytes]) -> None:
    """Has files among a run's artifacts: copies of those that lie somewhere, new ones of the bytes of others."""
    there = {file.path for file in client.list_artifacts(identifier)}
    with tempfile.TemporaryDirectory() as folder:
        for name in files.keys() - there:
            path = content if isinstance(content := files[name], Path) else Path(folder, name)
            if path is not content:
                path.write_bytes(content)
            client.log_artifact(identifier, str(path))


def pages() -> dict[str, str]:
    """A link for each experiment, to its methods in the UI, the best first."""
    from mlflow import MlflowClient

    server = uri if (uri := address()).startswith("http") else "http://127.0.0.1:5000"
    query = "viewStateShareKey=methods&workflowType=machine_learning"
    return {
        found.name: f"{server}/#/experiments/{found.experiment_id}/runs?{query}"
        for found in MlflowClient(uri).search_experiments(order_by=["experiment_id"])
        if "mlflow.sharedViewState.methods" in found.tags
    }
