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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OFF = "off"
PATIENCE = 60.0  # seconds to wait for another process that writes; it takes a few
VIEW = "table"  # names the columns below, in the link of `page`
COLUMNS = [
    *(f"metrics.`{name}`" for name in ("linear", "linear_ci95", "knn", "finetune", "effective_rank", "seconds")),
    *(f"tags.`{name}`" for name in ("status", "family")),
    *(f"params.`{name}`" for name in ("encoder", "temperature", "epochs")),
]

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
    files: list[Path] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)  # by file name
    dataset: tuple[str, str] | None = None  # its name, and a hash of it
    end: int | None = None  # None while it goes on


def harmless(write: Callable[..., None]) -> Callable[..., None]:
    """Has `write` do nothing where tracking is off, and makes of whatever it raises one warning for the process."""

    @functools.wraps(write)
    def wrapped(*args: Any) -> None:
        global _failed
        if available():
            try:
                with warnings.catch_warnings(action="ignore"):  # deprecations in what mlflow imports
                    write(*args)
            except Exception as error:
                _failed = True
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                told = f"not written to MLflow; results are not affected ({reason})"
                print(f"warning: {told}; `python -m stages.track` writes it later", file=sys.stderr, flush=True)

    return wrapped


def available() -> bool:
    """Whether there is a point in writing: tracking is not off, and nothing has failed so far."""
    return not _failed and os.environ.get("MLFLOW_TRACKING_URI") != OFF


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
    """Held by one process at a time. Raises TimeoutError or sqlite3.Error where the file cannot be written to."""
    until = time.monotonic() + PATIENCE
    with open(f"{file}.lock", "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"another process keeps {file}.lock") from None
                time.sleep(0.05)
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute(
                "PRAGMA journal_mode=WAL"
            )  # the UI, which reads, and who writes do not wait for each other
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
    view = {"selectedColumns": COLUMNS, "orderByKey": "metrics.`linear`", "orderByAsc": False}
    tags = {
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
        "mlflow.experimentKind": "custom_model_development",  # or else the UI opens on a page for language models
    }
    return client.create_experiment(name, artifact_location=artifacts, tags=tags)


def write(experiment: str, group: str, runs: list[Run]) -> None:
    """Writes a run and those below it, the first of `runs` and the others; `group` is the key of them all together."""
    with opened(experiment) as (client, identifier):
        found = client.search_runs([identifier], f"tags.`group` = '{group}'")
        there = {run.data.tags.get("number"): run for run in found}
        above: dict[str, str] = {}
        for run in runs:
            stored = there.get(run.number) or create(client, identifier, run, {"group": group, **above})
            complete(client, stored, run)
            above = above or {"mlflow.parentRunId": stored.info.run_id}


def create(client: Any, experiment: str, run: Run, tags: dict[str, str]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if not asked.returncode:
        tags |= {"mlflow.source.git.commit": asked.stdout.strip()}
    if run.number:
        tags |= {"number": run.number}
    stored = client.create_run(experiment, start_time=run.start, tags=run.tags | tags, run_name=run.title)
    if run.dataset:
        name, digest = run.dataset
        data = Dataset(name, digest, source_type="local", source=json.dumps({"uri": f"data/{run.tags['modality']}"}))
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
    if run.files or run.pictures:
        keep(client, identifier, run)
    last = {  # step of each curve that is there
        name: max(point.step for point in client.get_metric_history(identifier, name))
        for name in {name for name, *_ in run.points} & had.metrics.keys()
    }
    metrics = [Metric(*point) for point in run.points if point[3] > last.get(point[0], -1)]
    metrics += [Metric(name, v, now(), 0) for name, v in run.metrics.items() if had.metrics.get(name) != v]
    params = [Param(*item) for item in run.params.items() if item[0] not in had.params]
    tags = [RunTag(*item) for item in {**run.tags, **({"written": written} if run.end else {})}.items()]
    while len(metrics) > BATCH:
        client.log_batch(identifier, metrics=metrics[:BATCH])
        metrics = metrics[BATCH:]
    client.log_batch(identifier, metrics, params, tags)
    if run.end:
        client.set_terminated(identifier, end_time=run.end)


def keep(client: Any, identifier: str, run: Run) -> None:
    """Has its files and pictures among a run's artifacts."""
    there = {file.path for file in client.list_artifacts(identifier)}
    with tempfile.TemporaryDirectory() as folder:
        files = [*run.files, *(Path(folder, name) for name in run.pictures)]
        for name, picture in run.pictures.items():
            Path(folder, name).write_bytes(picture)
        for file in files:
            if file.name not in there:
                client.log_artifact(identifier, str(file))


def pages() -> list[str]:
    """How to look at the runs: a link for each experiment, with the columns that matter, the best first."""
    if not available():
        return []
    from mlflow import MlflowClient

    server = uri if (uri := address()).startswith("http") else "http://127.0.0.1:5000"
    found = sorted(MlflowClient(uri).search_experiments(), key=lambda experiment: experiment.experiment_id)
    link = f"{server}/#/experiments/{{}}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
    return (
        []
        if server == uri
        else ["`mlflow ui`, and then:"]
        + [
            f"{experiment.name}: {link.format(experiment.experiment_id)}"
            for experiment in found
            if f"mlflow.sharedViewState.{VIEW}" in experiment.tags
        ]
    )
