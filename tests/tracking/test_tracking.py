"""Results as MLflow's runs: what they hold, that nothing is written twice, and what a fault costs."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path
from unittest.mock import Mock

import pytest

from stages import track
from stages.common.files import read_json
from stages.common.settings import InputError
from stages.reporting.statistics import estimate
from stages.tracking import runs as tracking
from stages.tracking import store
from stages.training.devices import key_of

ROOT = Path(__file__).parents[2]
DATA = "0123456789ab"
SCORES = {0: 50.0, 1: 51.0, 2: 54.0}
SWEEP = {"trials": 3, "epochs": 1.5, "seed": 0, "space": {"temperature": {}}, "storage": None}

# mlflow is imported once, to save seconds; then three processes write the same entry at the same moment.
RACE = """
import multiprocessing
import mlflow.store.tracking.sqlalchemy_store
from stages.tracking.runs import write_entry

fork = multiprocessing.get_context("fork")
processes = [fork.Process(target=write_entry, args=("image", "simclr")) for _ in range(3)]
for process in processes:
    process.start()
for process in processes:
    process.join()
"""


def settings(**hyper):
    return {
        "method": "simclr",
        "family": "contrastive",
        "encoder": {"name": "small", "architecture": "ResNet", "width": 32, "blocks": [1, 1]},
        "hyper": {"temperature": 0.2, "width": 128} | hyper,
        "training": {"encoder": "small", "epochs": 3.0, "batch_size": 64, "lr": 0.002, "clip": None},
    }


def write_files(root, seeds=(0, 1, 2), evaluated=True):
    """The files of an entry, as its stages leave them."""
    entry = settings()
    plan = {
        "prepare": {"image": {"data": "emoji", "code": "d"}},
        "pretrain": {"image": {"simclr": {**entry, "code": "c0de"}}},
        "sweep": {"image": {"simclr": {"entry": entry, "sweep": SWEEP, "protocol": {}, "code": "c0de"}}},
    }
    write_json(root / "plan.json", plan)
    write_json(root / "data/image/manifest.json", {"hash": DATA + "cdef"})
    for seed in seeds:
        write_json(root / f"metrics/image/simclr/pretrain/{seed}.json", pretrained(seed))
        if evaluated:
            write_evaluation(root, seed, linear=SCORES[seed])


def pretrained(seed, points=5):
    return {
        "status": "ok",
        "key": f"key{seed}",
        "loss": 0.2,
        "seconds": 30.0 + seed,
        "samples": 640,
        "held_out": {"loss": 0.5},
        "panel": None,
        "views": {"rows": [], "webp": base64.b64encode(b"some bytes").decode()},
        "provenance": {"config": key_of(settings()), "code": "c0de", "data": DATA},
        "curve": [{"step": n, "samples": 64 * n, "loss": 1 / n, "spread": 0.1} for n in range(1, points + 1)],
        "clock": [100, 130],
    }


def write_evaluation(root, seed, **scores):
    found = {"status": "ok", "linear": None, "spread": 0.5, "seconds": 7.0, "clock": [140, 150]} | scores
    write_json(root / f"metrics/image/simclr/evaluate/{seed}.json", found)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_trials(root, values):
    """The files of a sweep with a trial of each of these scores; None is one that diverged."""
    rows = [
        f"{n},{'diverged' if v is None else 'complete'},{'' if v is None else v},{0.1 * (n + 1):.1f},2.5"
        for n, v in enumerate(values)
    ]
    folder = root / "reports/sweeps/image/simclr"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trials.csv").write_text("\n".join(["number,state,value,temperature,seconds", *rows]) + "\n")
    best = max(v for v in values if v is not None)
    study = {"trials": len(values), "diverged": values.count(None), "epochs": 1.5, "default_value": values[0]}
    write_json(folder / "study.json", study | {"best_value": best, "best_trial": values.index(best)})


def run_python(code, folder, **environment):
    """What `code` writes to stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, check=True).stderr


def stored(uri=""):
    """A client of the store, and all runs of the modality by title: the list has as many as share one."""
    from mlflow import MlflowClient

    with warnings.catch_warnings(action="ignore"):  # mlflow's own
        client = MlflowClient(uri or store.address())
        found = client.get_experiment_by_name("image")
        titles = {}
        for run in client.search_runs([found.experiment_id]) if found else []:
            titles.setdefault(run.info.run_name, []).append(run)
    return client, titles


def one(title):
    """The one run of that title."""
    [run] = stored()[1][title]
    return run


def curve(run, name="loss"):
    return [(point.step, point.value) for point in stored()[0].get_metric_history(run.info.run_id, name)]


@pytest.fixture(scope="session")
def raced(tmp_path_factory):
    """A folder whose store three processes created, writing the same entry at once, and what they complained of."""
    folder = tmp_path_factory.mktemp("store")
    write_files(folder)
    return folder, run_python(RACE, folder, MLFLOW_TRACKING_URI="", MLFLOW_LOGGING_LEVEL="ERROR")


@pytest.fixture(scope="session")
def empty(raced, tmp_path_factory):
    """A store with no experiment: it takes seconds to make one."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    with contextlib.closing(sqlite3.connect(raced[0] / "mlflow.db")) as source:
        source.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(raced[0] / "mlflow.db", file)
    with contextlib.closing(sqlite3.connect(file)) as database:
        for table in ("latest_metrics", "metrics", "params", "tags", "input_tags", "inputs", "datasets", "runs"):
            database.execute(f"DELETE FROM {table}")
        for table in ("experiment_tags", "experiments"):
            database.execute(f"DELETE FROM {table} WHERE experiment_id != 0")
        database.commit()
    return file


@pytest.fixture
def root(empty, tmp_path, monkeypatch):
    """A repository with the files of an entry and an empty store, and the current directory."""
    shutil.copy(empty, tmp_path / "mlflow.db")
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(store, "_failed", False)
    return tmp_path


# ---- What runs hold


def test_an_entry_holds_its_settings_and_its_means(root):
    tracking.write_entry("image", "simclr")
    run, expected = one("simclr"), estimate(list(SCORES.values()))
    assert run.data.metrics["linear"] == round(expected.mean, 4)
    assert run.data.metrics["linear_ci95"] == round(expected.half_width, 4)
    assert run.data.metrics["seconds"] == 31.0
    assert run.data.params == {
        "temperature": "0.2",
        "width": "128",
        "epochs": "3.0",
        "batch_size": "64",
        "lr": "0.002",
        "encoder": "small",
        "encoder.architecture": "ResNet",
        "encoder.width": "32",
        "encoder.blocks": "[1, 1]",
        "method": "simclr",
        "family": "contrastive",
    }
    tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
    expected = {"kind": "entry", "modality": "image", "entry": "simclr", "family": "contrastive", "data": "emoji"}
    assert tags.items() >= (expected | {"code": "c0de", "status": "ok"}).items()
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", 100_000, 150_000)
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("emoji", DATA)


def test_a_seed_holds_settings_curves_accuracies_and_cost_on_one_run(root):
    models = root / "models/image/simclr/1"
    models.mkdir(parents=True)
    (models / "encoder.safetensors").write_bytes(b"weights")
    tracking.write_entry("image", "simclr")
    client, found = stored()
    assert found.keys() == {"simclr", "simclr 0", "simclr 1", "simclr 2"}
    run, parent = one("simclr 1"), one("simclr")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (run.data.tags["key"], run.data.tags["kind"]) == ("key1", "seed")
    assert run.data.params == {**parent.data.params, "seed": "1"}
    assert curve(run) == [(n, 1 / n) for n in range(1, 6)]
    times = [point.timestamp for point in client.get_metric_history(run.info.run_id, "loss")]
    assert times == [106_000, 112_000, 118_000, 124_000, 130_000]
    assert run.data.metrics == {
        "loss": 0.2,
        "train/spread": 0.1,
        "linear": 51.0,
        "spread": 0.5,
        "seconds": 31.0,
        "evaluation_seconds": 7.0,
        "samples": 640,
        "held_out/loss": 0.5,
    }
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"encoder.safetensors", "views.webp"}
    kept = client.download_artifacts(run.info.run_id, "views.webp", str(root))
    assert Path(kept).read_bytes() == b"some bytes"
    assert (root / "mlartifacts").is_dir()


def test_below_three_seeds_there_is_no_interval(root):
    (root / "metrics/image/simclr/pretrain/2.json").unlink()
    tracking.write_entry("image", "simclr")
    metrics = one("simclr").data.metrics
    assert metrics["linear"] == 50.5
    assert "linear_ci95" not in metrics


def test_a_run_that_diverged_says_so(root):
    write_json(root / "metrics/image/simclr/pretrain/1.json", pretrained(1) | {"status": "diverged"})
    write_evaluation(root, 1, status="diverged")
    tracking.write_entry("image", "simclr")
    assert one("simclr 1").data.tags["status"] == "diverged"
    assert one("simclr").data.tags["status"] == "2 ok, 1 diverged"
    assert one("simclr").data.metrics["linear"] == 52.0  # of those that have one


def test_long_curves_are_sent_in_parts(root):
    points = store.BATCH + 100
    write_json(root / "metrics/image/simclr/pretrain/0.json", pretrained(0, points))
    tracking.write_entry("image", "simclr")
    assert curve(one("simclr 0")) == [(n, 1 / n) for n in range(1, points + 1)]


def test_results_of_other_settings_than_the_plan_has_are_passed_over(root):
    plan = read_json(Path("plan.json"))
    plan["pretrain"]["image"]["simclr"]["hyper"]["temperature"] = 0.5
    write_json(root / "plan.json", plan)
    tracking.write_entry("image", "simclr")
    assert stored()[1] == {}


def test_a_sweep_has_its_trials_below_it(root):
    write_trials(root, [50.0, None, 52.0])
    tracking.write_sweep("image", "simclr")
    study = one("simclr sweep")
    trials = [one(f"simclr trial {n}") for n in range(3)]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {study.info.run_id}
    assert [run.data.params["temperature"] for run in trials] == ["0.1", "0.2", "0.3"]
    assert [run.data.metrics.get("validation") for run in trials] == [50.0, None, 52.0]
    assert [run.data.tags["status"] for run in trials] == ["ok", "diverged", "ok"]
    assert [run.data.tags["best"] for run in trials] == ["false", "false", "true"]
    assert trials[0].data.metrics["seconds"] == 2.5
    assert study.data.metrics["validation"] == 52.0

    write_trials(root, [50.0, None, 52.0, 53.0])  # and one more
    tracking.write_sweep("image", "simclr")
    assert [one(f"simclr trial {n}").data.tags["best"] for n in range(4)] == ["false", "false", "false", "true"]
    assert one("simclr sweep").data.metrics["validation"] == 53.0


# ---- Written again


def test_writing_again_changes_nothing(root, monkeypatch):
    write_trials(root, [50.0, 51.0])
    tracking.write_all()
    client, before = stored()
    for name in ("create_run", "log_batch", "log_artifact", "set_terminated"):
        monkeypatch.setattr(type(client), name, Mock(side_effect=AssertionError(name)))
    tracking.write_all()
    assert store.available()
    assert stored()[1].keys() == before.keys()


def test_an_evaluation_that_comes_later_or_anew_updates_the_same_runs(root):
    shutil.rmtree(root / "metrics/image/simclr/evaluate")
    tracking.write_entry("image", "simclr")
    assert "linear" not in one("simclr 0").data.metrics
    for score in (60.0, 70.0, 60.0):  # the last under the first protocol again
        write_evaluation(root, 0, linear=score)
        tracking.write_entry("image", "simclr")
        assert one("simclr 0").data.metrics["linear"] == score
        assert one("simclr").data.metrics["linear"] == score  # the others have none yet
    assert curve(one("simclr 0")) == [(n, 1 / n) for n in range(1, 6)]


def test_an_encoder_that_comes_later_is_added(root):
    tracking.write_entry("image", "simclr")
    models = root / "models/image/simclr/0"
    models.mkdir(parents=True)
    (models / "encoder.safetensors").write_bytes(b"weights")
    tracking.write_entry("image", "simclr")
    files = {file.path for file in stored()[0].list_artifacts(one("simclr 0").info.run_id)}
    assert files == {"encoder.safetensors", "views.webp"}


@pytest.mark.parametrize("call", [1, 3, 5])
def test_what_is_cut_off_is_completed(call, root, monkeypatch, capsys):
    """By a kill, or a fault, between any two requests."""
    with monkeypatch.context() as patch:
        client = type(stored()[0])
        create, log = client.create_run, client.log_batch
        calls = iter(range(1, 99))

        def counted(method):
            def wrapped(*args, **given):
                if next(calls) >= call:
                    raise OSError("gone")
                return method(*args, **given)

            return wrapped

        patch.setattr(client, "create_run", counted(create))
        patch.setattr(client, "log_batch", counted(log))
        tracking.write_entry("image", "simclr")
    assert "(OSError: gone)" in capsys.readouterr().err
    monkeypatch.setattr(store, "_failed", False)
    tracking.write_entry("image", "simclr")
    for seed in range(3):
        run = one(f"simclr {seed}")
        assert (run.info.status, curve(run)) == ("FINISHED", [(n, 1 / n) for n in range(1, 6)])
    assert one("simclr").data.metrics["linear"] == round(estimate(list(SCORES.values())).mean, 4)


def test_three_processes_create_one_store_and_write_one_entry(raced, monkeypatch):
    folder, complaints = raced
    assert complaints == ""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    client, found = stored()
    assert {title: len(runs) for title, runs in found.items()} == dict.fromkeys(
        ("simclr", "simclr 0", "simclr 1", "simclr 2"), 1
    )
    assert client.get_experiment_by_name("image").artifact_location == (folder / "mlartifacts").as_uri()


# ---- Runs that last


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(tracking, "OFTEN", 0.0)


def test_a_curve_grows_while_the_run_lasts_and_is_completed(root, eager):
    live = tracking.Live("image", "simclr", [0, 1, 2])
    live.log(0, {"step": 1, "samples": 64, "loss": 1.0, "spread": 0.1})
    live.log(0, {"step": 2, "samples": 128, "loss": 0.5, "spread": 0.1})
    run = one("simclr 0")
    assert (run.info.status, curve(run)) == ("RUNNING", [(1, 1.0), (2, 0.5)])
    assert run.data.params["temperature"] == "0.2"
    assert one("simclr").info.status == "RUNNING"

    resumed = tracking.Live("image", "simclr", [0, 1, 2])  # after a kill, from a checkpoint
    for step in (2, 3):
        resumed.log(0, {"step": step, "samples": 64 * step, "loss": 1 / step, "spread": 0.1})
    tracking.write_entry("image", "simclr")
    run = one("simclr 0")
    assert (run.info.run_id, run.info.status) == (one("simclr 0").info.run_id, "FINISHED")
    assert curve(run) == [(n, 1 / n) for n in range(1, 6)]
    assert run.data.tags["key"] == "key0"
    assert one("simclr").info.status == "FINISHED"


def test_points_wait_for_others(root, monkeypatch):
    monkeypatch.setattr(store, "write", Mock(side_effect=AssertionError("too early")))
    live = tracking.Live("image", "simclr", [0])
    for step in range(99):
        live.log(0, {"step": step, "loss": 1.0})
    assert store.available()


# ---- Faults


def test_off_writes_nothing_and_does_not_import_mlflow(root):
    code = "import sys\nfrom stages.tracking import runs\nruns.write_all()\nassert 'mlflow' not in sys.modules"
    assert run_python(f"{code}\nfrom stages import track; track.main()", root, MLFLOW_TRACKING_URI="off") == ""


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "sqlite:////nowhere/at/all/mlflow.db", "nonsense://x", "sqlite:///corrupt.db"]
)
def test_a_store_out_of_reach_costs_one_warning_and_seconds(uri, root, eager, monkeypatch, capsys):
    (root / "corrupt.db").write_bytes(b"no database" * 999)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    write_trials(root, [50.0])
    began, live = time.monotonic(), tracking.Live("image", "simclr", [0])
    for step in (1, 2):
        live.log(0, {"step": step, "loss": 1.0})
    tracking.write_entry("image", "simclr")
    tracking.write_all()
    assert time.monotonic() - began < 20
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: not written to MLflow; results are not affected (")
    assert line.endswith("; `python -m stages.track` writes it later")


def test_a_store_that_another_program_keeps_locked_costs_one_warning(root, capsys):
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("BEGIN EXCLUSIVE")
        tracking.write_entry("image", "simclr")
    [line] = capsys.readouterr().err.splitlines()
    assert "database is locked" in line


def test_a_damaged_result_costs_one_warning(root, capsys):
    (root / "metrics/image/simclr/pretrain/1.json").write_text("{")
    write_trials(root, [50.0])
    tracking.write_all()
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert "simclr sweep" in stored()[1]  # the others are written all the same


def test_an_experiment_that_was_deleted_in_the_ui_comes_back(root, capsys):
    tracking.write_entry("image", "simclr")
    client = stored()[0]
    client.delete_experiment(client.get_experiment_by_name("image").experiment_id)
    write_evaluation(root, 0, linear=60.0)
    tracking.write_entry("image", "simclr")
    assert one("simclr 0").data.metrics["linear"] == 60.0
    assert capsys.readouterr().err == ""


# ---- Where the store is, and how people look at it


def test_mlflow_finds_the_store_without_being_told(raced, monkeypatch):
    utils = pytest.importorskip("mlflow.tracking._tracking_service.utils")
    monkeypatch.chdir(raced[0])
    assert utils._get_default_tracking_uri() == "sqlite:///mlflow.db"


def test_a_temporary_folder_of_dvc_uses_the_store_of_its_repository(tmp_path, monkeypatch):
    folder = tmp_path / ".dvc" / "tmp" / "exps" / "tmp1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert store.root() == tmp_path.resolve()
    monkeypatch.chdir(tmp_path)
    assert store.root() == tmp_path.resolve()


def test_the_command_writes_everything_and_says_where_to_look(root, capsys):
    write_trials(root, [50.0])
    track.main()
    lines = capsys.readouterr().out.splitlines()
    experiment = stored()[0].get_experiment_by_name("image")
    assert f"image: http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs?" in lines[-1]
    assert stored()[1].keys() >= {"simclr", "simclr sweep"}
    saved = json.loads(experiment.tags["mlflow.sharedViewState.methods"])  # what the link names
    metrics = {name[9:-1] for name in json.loads(saved["state"])["selectedColumns"] if name.startswith("metrics.")}
    assert {"linear", "seconds", "linear_ci95"} <= metrics & one("simclr").data.metrics.keys()


def test_the_command_fails_where_the_store_does(root, monkeypatch, capsys):
    (root / "mlflow.db").write_bytes(b"no database" * 999)
    with pytest.raises(InputError, match=r"^the store sqlite:///.*mlflow.db cannot be used; mend it or move it away"):
        track.main()
    (root / "mlflow.db").unlink()
    monkeypatch.setattr(store, "_failed", False)
    track.main()
    assert "simclr" in stored()[1]


# ---- A real server, which many machines would share


@pytest.fixture
def serve(root, monkeypatch):
    """Starts `mlflow server` on this machine, always at one address, over a store in `root`; returns its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    command = [sys.executable, "-m", "mlflow", "server", "--port", address.rsplit(":", 1)[1], "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--artifacts-destination", str(root / "kept")]
    started = []

    def start_server():
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
        started.append(server)
        until = time.monotonic() + 120
        while True:
            try:
                return urllib.request.urlopen(f"{address}/health", timeout=5) and server
            except OSError:
                assert server.poll() is None, "the server did not start"
                assert time.monotonic() < until
                time.sleep(0.2)

    yield start_server
    for server in started:
        stop(server)


def stop(server):
    """Kills a server and its own processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def test_a_server_that_dies_costs_one_warning_and_has_everything_after_it_came_back(serve, root, monkeypatch, capsys):
    shutil.rmtree(root / "metrics/image/simclr/evaluate")
    server = serve()
    tracking.write_entry("image", "simclr")
    stop(server)
    for seed, score in SCORES.items():
        write_evaluation(root, seed, linear=score)
    tracking.write_entry("image", "simclr")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: not written to MLflow; results are not affected (")
    serve()
    assert "linear" not in one("simclr 0").data.metrics
    monkeypatch.setattr(store, "_failed", False)
    track.main()  # as a process of its own
    assert one("simclr 0").data.metrics["linear"] == 50.0
    client, found = stored()
    assert {title: [run.info.status for run in runs] for title, runs in found.items()} == {
        title: ["FINISHED"] for title in ("simclr", "simclr 0", "simclr 1", "simclr 2")
    }
    assert [file.path for file in client.list_artifacts(one("simclr 0").info.run_id)] == ["views.webp"]
    assert capsys.readouterr().err == ""

    with monkeypatch.context() as patch:  # a UI that reads while stages write to the file beneath it
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        for seed in SCORES:
            write_json(root / f"metrics/image/simclr/pretrain/{seed}.json", pretrained(seed) | {"views": None})
        for score in (60.0, 61.0, 62.0):
            write_evaluation(root, 0, linear=score)
            tracking.write_entry("image", "simclr")
            [seen] = stored(os.environ["MLFLOW_TRACKING_URI"])[1]["simclr 0"]
            assert seen.data.metrics["linear"] == score
    assert one("simclr 0").data.metrics["linear"] == 62.0
    assert capsys.readouterr().err == ""
