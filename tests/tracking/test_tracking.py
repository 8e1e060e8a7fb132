import base64
import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from stages.tracking import recorder
from stages.tracking import runs as tracking

ROOT = Path(__file__).parents[2]
TRACK = """
from stages import tracking
with tracking.start("pretrain", modality="image", name="x", seed=0, params={}, tags={}, key="k") as run:
    run.log(1, loss=0.5)
"""
# mlflow is imported once, to save seconds; then three processes begin a run at the same moment.
RACE = """
import multiprocessing
import mlflow.store.tracking.sqlalchemy_store
from stages.recorder import Recorder, store

def track(seed):
    recorder = Recorder()
    tags = {"key": f"k{seed}", "kind": "pretrain"}
    recorder.begin(store(), "image", tags, params={}, milliseconds=0)
    recorder.end("ok", "FINISHED", milliseconds=1)

fork = multiprocessing.get_context("fork")
processes = [fork.Process(target=track, args=(seed,)) for seed in range(3)]
for process in processes:
    process.start()
for process in processes:
    process.join()
"""

# Two processes record ten runs each, as two stages at a time do, one after another.
BUSY = """
import multiprocessing, time
from stages.recorder import Recorder, store

def track(process):
    for number in range(10):
        recorder, tags = Recorder(), {"key": f"k{process} {number}", "kind": "pretrain"}
        recorder.begin(store(), "image", tags, params={"lr": "1"}, milliseconds=0)
        for step in range(1, 6):
            recorder.log(step, {"loss": 1 / step}, milliseconds=step)
            recorder.flush()
            time.sleep(0.02)
        recorder.end("ok", "FINISHED", milliseconds=9)

processes = [multiprocessing.Process(target=track, args=(number,)) for number in range(2)]
for process in processes:
    process.start()
for process in processes:
    process.join()
"""


def start(key="k", kind="pretrain", params=None):
    tags = {"family": "contrastive", "method": "simclr"}
    return tracking.start(kind, modality="image", name="simclr", seed=0, params=params or {}, tags=tags, key=key)


def connect(folder, experiment="image"):
    with warnings.catch_warnings(action="ignore"):  # mlflow's own
        return recorder.connect(f"sqlite:///{folder}/mlflow.db", experiment)


def left(folder=None):
    """What is yet to be written."""
    return sorted((recorder.folder_of(folder) if folder else recorder.folder()).glob("*.calls"))


def die(run):
    """What the death of its process does to a run's file."""
    run._send.__self__._file.close()


def run_python(code, folder, **environment):
    """What `code` has written to stderr, and the recorder that it started, until that one lets go of it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_LOGGING_LEVEL": "ERROR", **environment}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, check=True).stderr


@pytest.fixture(scope="session")
def created(tmp_path_factory):
    """A fresh store's folder, and what three processes that each began a run in it at once had to complain of."""
    folder = tmp_path_factory.mktemp("store")
    return folder, run_python(RACE, folder, MLFLOW_TRACKING_URI="")


@pytest.fixture
def listener(monkeypatch):
    """Has the recorder work in this process when a run ends, and not, as usual, in one of its own: that saves seconds.

    Call it to have it work at another time.
    """
    monkeypatch.setattr(recorder, "PAUSE", 0.0)
    monkeypatch.setattr(recorder, "STORES", {})
    monkeypatch.setattr(tracking.Channel, "_serve", lambda _: listen())

    def listen():
        recorder.Service(recorder.folder(), linger=0.0).run()

    return listen


@pytest.fixture
def runs(created, listener, tmp_path, monkeypatch):
    """A store of the test's own in the current directory; call it for the runs in an experiment, the oldest first."""
    for file in created[0].glob("mlflow.db*"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def read(experiment="image"):
        client, identifier = connect(tmp_path, experiment)
        found = client.search_runs([identifier], "tags.key LIKE 'k%'", order_by=["attributes.start_time"])
        return client, [run for run in found if run.data.tags.get("family") == "contrastive"]

    return read


def curve(client, run, metric="loss"):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def test_three_processes_create_one_store(created):
    folder, complaints = created
    assert complaints == ""
    client, identifier = connect(folder)
    assert {run.data.tags["key"] for run in client.search_runs([identifier])} == {"k0", "k1", "k2"}
    assert client.get_experiment(identifier).artifact_location == (folder / "mlartifacts").as_uri()


def test_mlflow_finds_the_store_without_being_told(created, monkeypatch):
    mlflow_utils = pytest.importorskip("mlflow.tracking._tracking_service.utils")
    monkeypatch.chdir(created[0])
    assert mlflow_utils._get_default_tracking_uri() == "sqlite:///mlflow.db"


def test_a_run_holds_all_that_was_logged(runs):
    params = {"hyper": {"temperature": 0.5, "views": {"strength": 1.0}}, "family": "contrastive"} | {
        f"p{i}": i for i in range(150)
    }
    with start(params=params) as run:
        for step in range(1, 1301):
            run.log(step, loss=1 / step)
        run.finish("collapsed", linear=61.5, knn=None)
    client, [stored] = runs()
    assert curve(client, stored) == [(step, 1 / step) for step in range(1, 1301)]
    assert stored.data.params["hyper.temperature"] == "0.5"
    assert stored.data.params["hyper.views.strength"] == "1.0"
    assert len(stored.data.params) == 153
    assert stored.data.metrics.keys() == {"loss", "linear"}
    assert stored.data.metrics["linear"] == 61.5
    assert stored.info.status == "FINISHED"
    tags = {key: value for key, value in stored.data.tags.items() if not key.startswith("mlflow.")}
    assert tags == {
        "kind": "pretrain",
        "modality": "image",
        "entry": "simclr",
        "seed": "0",
        "key": "k",
        "family": "contrastive",
        "method": "simclr",
        "status": "collapsed",
    }


def test_points_are_sent_in_batches(runs, monkeypatch):
    run, sent = recorder.Recorder(), []
    with warnings.catch_warnings(action="ignore"):  # mlflow's own
        run.begin(recorder.store(), "image", {"key": "k", "kind": "pretrain"}, params={}, milliseconds=0)
    monkeypatch.setattr(run._client, "log_batch", lambda _, metrics: sent.append(len(metrics)))
    for step in range(recorder.POINTS):
        run.log(step, {"loss": 1.0, "lr": 0.1}, milliseconds=step)
    assert sent == [recorder.POINTS] * 2


def test_a_killed_run_is_continued_without_doubled_points(runs, listener):
    killed = start(params={"epochs": 9})
    for step in range(1, 6):
        killed.log(step, loss=float(step))
    die(killed)
    listener()
    [running] = runs()[1]
    assert running.info.status == "RUNNING"

    with start(params={"epochs": 9}) as resumed:
        for step in range(1, 10):
            resumed.log(step, loss=float(step), lr=0.1)
    client, [stored] = runs()
    assert curve(client, stored) == [(step, float(step)) for step in range(1, 10)]
    assert curve(client, stored, "lr") == [(step, 0.1) for step in range(1, 10)]
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["status"] == "ok"


def test_a_picture_is_kept_with_its_run(runs, tmp_path):
    with start() as run:
        run.picture("panel.webp", base64.b64encode(b"some bytes").decode())
    client, [stored] = runs()
    kept = Path(client.download_artifacts(stored.info.run_id, "panel.webp", str(tmp_path)))
    assert kept.read_bytes() == b"some bytes"


def test_an_exception_marks_the_run_as_failed_and_passes(runs):
    def fail():
        with start() as run:
            run.log(1, loss=1.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    client, [stored] = runs()
    assert (stored.info.status, stored.data.tags["status"]) == ("FAILED", "failed")
    assert curve(client, stored) == [(1, 1.0)]
    with start():
        pass
    assert [run.info.status for run in runs()[1]] == ["FINISHED"]


def test_a_finished_run_is_left_alone_and_not_doubled(runs):
    """DVC may be killed before it notes a stage as done; then the stage runs once more."""
    for value in (1.0, 2.0):
        with start() as run:
            run.log(1, loss=value)
            run.log(2, loss=value)
            run.picture("late.webp", "")
    with start(key="k3") as run:
        run.log(1, loss=3.0)
    client, stored = runs()
    assert [curve(client, run) for run in stored] == [[(1, 1.0), (2, 1.0)], [(1, 3.0)]]


def test_a_closing_number_does_not_bend_a_curve(runs):
    with start() as run:
        run.log(1, loss=3.0)
        run.log(2, loss=2.0)
        run.finish(loss=2.0, seconds=1.5)
    client, [stored] = runs()
    assert curve(client, stored) == [(1, 3.0), (2, 2.0)]
    assert stored.data.metrics["seconds"] == 1.5


def test_the_trials_of_sweeps_lie_apart(runs):
    with start(kind="sweep"):
        pass
    with start(kind="evaluate"):
        pass
    assert [run.data.tags["kind"] for run in runs("image sweep")[1]] == ["sweep"]
    assert [run.data.tags["kind"] for run in runs("image")[1]] == ["evaluate"]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////nowhere/at/all/mlflow.db", "nonsense://x"])
def test_a_store_out_of_reach_costs_a_warning_and_holds_up_no_other(uri, runs, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with start(key="k4") as run:
        run.log(1, loss=1.0)
    [line] = capsys.readouterr().err.splitlines()
    waiting = f"waits in {recorder.folder()}; results are not affected ("
    assert line.startswith("warning: MLflow's store is out of reach; what is to be written there " + waiting)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with start(key="k5"):
        pass
    assert [run.data.tags["key"] for run in runs()[1]] == ["k5"]
    assert len(left()) == 1


@pytest.mark.parametrize("part", ["connect", "Recorder.end"])
def test_what_waits_is_written_as_soon_as_the_store_is_back(part, runs, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(f"stages.recorder.{part}", Mock(side_effect=OSError("gone")))
        for key in ("k4", "k5"):
            with start(key=key) as run:
                run.log(1, loss=1.0)
                run.log(2, loss=1.0)
    complaints = capsys.readouterr().err.splitlines()
    assert [line[-15:] for line in complaints] == ["(OSError: gone)"] * 2  # of the recorders after either
    assert len(left()) == 2
    with start(key="k6"):
        pass
    client, stored = runs()
    curves = {run.data.tags["key"]: curve(client, run) for run in stored if run.info.status == "FINISHED"}
    assert curves == {"k4": [(1, 1.0), (2, 1.0)], "k5": [(1, 1.0), (2, 1.0)], "k6": []}
    assert left() == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("line", [b"", b"{", b"[1]\n", b'["forget", {}]\n', b"\xff\x00\n"])
def test_a_file_that_cannot_be_understood_holds_up_no_other(line, runs, capsys):
    recorder.folder().mkdir(parents=True)
    (recorder.folder() / "1-1.calls").write_bytes(line)
    with start():
        pass
    assert len(runs()[1]) == 1
    assert left() == []
    assert len(capsys.readouterr().err.splitlines()) == line.endswith(b"\n")  # a line that is not whole was never sent


@pytest.mark.parametrize("part", ["first line", "later"])
def test_a_disk_that_is_full_costs_one_warning(part, runs, monkeypatch, capsys):
    full = OSError(errno.ENOSPC, "No space left on device")
    if part == "first line":
        monkeypatch.setattr(tracking, "opened", Mock(side_effect=full))
    else:
        monkeypatch.setattr(tracking, "opened", lambda _: Mock(write=Mock(side_effect=[None, full])))
    with start() as run:
        run.log(1, loss=1.0)
        run.log(2, loss=1.0)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: not tracked in MLflow from here on; results are not affected (OSError: [Errno 28]")


# ---- The recorder's own process


@pytest.fixture
def ended(tmp_path):
    """Waits until all is written, and ends the recorder that serves in tmp_path."""

    def wait():
        until = time.monotonic() + 60
        while left(tmp_path):
            assert time.monotonic() < until
            time.sleep(0.1)
        for process in recorders(tmp_path):
            process.kill()
            process.wait()

    yield wait
    wait()


def recorders(folder):
    """The recorders that serve in a folder."""
    found = psutil.process_iter(["cmdline"])
    return [one for one in found if str(recorder.folder_of(folder)) in (one.info["cmdline"] or [])]


def stored_of(folder, key="k"):
    client, identifier = connect(folder)
    return client, client.search_runs([identifier], f"tags.key = '{key}'")


def test_a_process_of_its_own_writes_the_run(runs, ended, tmp_path):
    assert run_python(f"{TRACK}\nimport sys; assert 'mlflow' not in sys.modules", tmp_path) == ""
    ended()
    client, [stored] = stored_of(tmp_path)
    assert (stored.info.status, stored.data.tags["status"]) == ("FINISHED", "ok")
    assert curve(client, stored) == [(1, 0.5)]


def test_one_process_serves_stages_at_once_and_one_after_another(runs, ended, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda n: run_python(TRACK.replace('"k"', f'"k{n}"'), tmp_path), range(3, 9)))
    [served] = recorders(tmp_path)
    run_python(TRACK.replace('"k"', '"k9"'), tmp_path)
    assert recorders(tmp_path) == [served]
    ended()
    client, identifier = connect(tmp_path)
    stored = {run.data.tags["key"]: run.info.status for run in client.search_runs([identifier], "tags.key LIKE 'k%'")}
    assert stored == {f"k{n}": "FINISHED" for n in range(10)}


def test_what_a_stage_that_is_killed_has_logged_is_kept_and_its_run_stays_open(runs, listener, tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_python(f"{TRACK}    import os; os.kill(os.getpid(), 9)", tmp_path)
    assert caught.value.returncode == -signal.SIGKILL
    listener()
    client, [stored] = stored_of(tmp_path)
    assert stored.info.status == "RUNNING"
    assert curve(client, stored) == [(1, 0.5)]


def test_what_kills_the_stage_does_not_stop_the_writing(runs, ended, tmp_path):
    """A stage that has ended is done for DVC: nothing would write its run again."""
    code = f"{TRACK}\nimport os; os.killpg(0, 9)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, start_new_session=True)
    killed.wait()
    assert killed.returncode == -signal.SIGKILL
    ended()
    [stored] = stored_of(tmp_path)[1]
    assert stored.info.status == "FINISHED"


def test_a_recorder_that_is_killed_loses_nothing(runs, ended, listener, tmp_path):
    code = f"{TRACK}\nfor recorder in tracking.Channel._started: recorder.kill()"
    run_python(code, tmp_path)
    assert len(left(tmp_path)) == 1
    listener()
    client, [stored] = stored_of(tmp_path)
    assert stored.info.status == "FINISHED"
    assert curve(client, stored) == [(1, 0.5)]


def test_a_store_that_is_removed_while_the_recorder_stays_is_made_anew(runs, ended, tmp_path):
    run_python(TRACK, tmp_path)
    until = time.monotonic() + 60
    while left(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(recorders(tmp_path)) == 1
    for file in tmp_path.glob("mlflow.db*"):
        file.unlink()
    run_python(TRACK.replace('"k"', '"kk"'), tmp_path)
    ended()
    assert len(stored_of(tmp_path, "kk")[1]) == 1


def test_the_next_stage_tells_what_a_recorder_that_serves_has_to_say(runs, ended, tmp_path):
    """It has let go of stderr by then: whoever reads a stage's waits for its end, and not for that of the recorder."""
    run_python(TRACK, tmp_path)  # returns though the recorder stays
    assert len(recorders(tmp_path)) == 1
    assert run_python(TRACK, tmp_path, MLFLOW_TRACKING_URI="nonsense://x") == ""
    until = time.monotonic() + 60
    while not recorder.said(recorder.folder_of(tmp_path)).exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    said = run_python(TRACK.replace('"k"', '"kk"'), tmp_path)
    assert said.splitlines()[0].startswith("warning: MLflow's store is out of reach")
    for file in left(tmp_path):
        file.unlink()


def test_by_hand_it_writes_what_waits_of_all_machines(runs, tmp_path):
    run_python(TRACK + "tracking.Channel._started[0].kill()", tmp_path)
    mine = recorder.folder_of(tmp_path)
    mine.rename(mine.with_name("node17"))
    assert left(tmp_path) == []
    assert run_python("from stages.recorder import main; main()", tmp_path) == ""
    [stored] = stored_of(tmp_path)[1]
    assert stored.info.status == "FINISHED"
    assert list(mine.parent.glob("*/*.calls")) == []


def test_no_process_starts_before_the_end_of_a_short_run(tmp_path, monkeypatch):
    """Beside the computation it would slow it down."""
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: started.append(0))
    with start() as run:
        for step in range(99):
            run.log(step, loss=1.0)
        assert not started
    [file] = left(tmp_path)
    assert len(started) == 1
    assert [json.loads(line)[0] for line in file.read_text().splitlines()] == ["begin", *["log"] * 100, "end"]


def test_a_run_that_lasts_is_shown_while_it_goes_on(runs, ended, tmp_path):
    code = f"from stages import tracking; tracking.PATIENCE = 0{TRACK}    import time; time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stage = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    until = time.monotonic() + 50
    while not stored_of(tmp_path)[1]:
        assert time.monotonic() < until
        time.sleep(0.2)
    [running] = stored_of(tmp_path)[1]
    assert (running.info.status, stage.poll()) == ("RUNNING", None)
    stage.kill()
    stage.wait()


def test_a_run_keeps_its_times_however_late_it_is_written(runs, monkeypatch):
    clock = iter([5_000, 6_000, 7_000, 8_000])
    monkeypatch.setattr(tracking, "now", lambda: next(clock))
    with start() as run:
        run.log(1, loss=1.0)
    client, [stored] = runs()
    assert (stored.info.start_time, stored.info.end_time) == (5_000, 8_000)
    assert [point.timestamp for point in client.get_metric_history(stored.info.run_id, "loss")] == [6_000]


def test_off_starts_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with start() as run:
        run.log(1, loss=1.0)
    assert not any(tmp_path.iterdir())


def test_a_temporary_folder_of_dvc_uses_the_store_of_its_repository(tmp_path, monkeypatch):
    folder = tmp_path / ".dvc" / "tmp" / "exps" / "tmp1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert recorder.root() == tmp_path.resolve()
    monkeypatch.chdir(tmp_path)
    assert recorder.root() == tmp_path.resolve()


# ---- A real server, which many machines would share


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Starts `mlflow server` on this machine, always at one address, over a store in tmp_path; returns its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    command = [sys.executable, "-m", "mlflow", "server", "--port", address.rsplit(":", 1)[1], "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/served.db", "--artifacts-destination", str(tmp_path)]
    started = []

    def start_server():
        server = subprocess.Popen(
            command,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
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


def stored_runs(address):
    client, identifier = recorder.connect(address, "image")
    return client, {run.data.tags["key"]: run for run in client.search_runs([identifier])}


def test_a_server_that_dies_costs_one_warning_and_has_all_runs_after_it_came_back(serve, listener, monkeypatch, capsys):
    address, server = os.environ["MLFLOW_TRACKING_URI"], serve()
    with start(key="whole") as run:
        run.log(1, loss=0.5)
        run.picture("views.webp", base64.b64encode(b"picture").decode())
        run.finish(linear=50.0)
    stop(server)
    with start(key="late") as run:
        run.log(1, loss=0.5)
        run.log(2, loss=0.25)
        run.finish(linear=50.0)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow's store is out of reach")
    serve()
    assert stored_runs(address)[1].keys() == {"whole"}
    listener()  # with the end of the next stage
    client, found = stored_runs(address)
    assert {key: run.info.status for key, run in found.items()} == {"whole": "FINISHED", "late": "FINISHED"}
    assert found["whole"].data.metrics == {"loss": 0.5, "linear": 50.0}
    assert [file.path for file in client.list_artifacts(found["whole"].info.run_id)] == ["views.webp"]
    assert curve(client, found["late"]) == [(1, 0.5), (2, 0.25)]
    assert capsys.readouterr().err == ""
    assert left() == []


def test_a_ui_that_reads_throughout_disturbs_no_run(serve, tmp_path, monkeypatch):
    address = os.environ["MLFLOW_TRACKING_URI"]
    serve()
    seen = [len(stored_runs(address)[1])]
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(run_python, BUSY, tmp_path, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/served.db")
        while not writing.done():
            seen.append(len(stored_runs(address)[1]))
    assert writing.result() == ""
    assert seen == sorted(seen)
    assert any(0 < count < 20 for count in seen)  # it read while they wrote
    client, found = stored_runs(address)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    points = [(step, pytest.approx(1 / step)) for step in range(1, 6)]
    assert [curve(client, run) for run in found.values()] == [points] * 20
