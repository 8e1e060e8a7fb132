import dataclasses
import glob
import itertools
import json
import math
import multiprocessing
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from stages import sweep
from stages.common.settings import Entry, InputError, Sweep, Training
from stages.sweeping import outcome as sweep_report
from stages.tracking import runs as tracking

ROOT = Path(__file__).parents[2]
SPACE = {
    "temperature": {"low": 0.05, "high": 1.0, "log": True},
    "strength": {"low": 0.0, "high": 1.5},
    "batch_size": {"choices": [64, 128, 256, 512]},
}
DEFAULT = {"temperature": 0.5, "strength": 1.0, "batch_size": 256}
DATA = {"data": "emoji", "classes": ["Objects", "Symbols"], "splits": {"train": {"rows": 8464}}}


@pytest.fixture(autouse=True)
def quiet_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    monkeypatch.setattr(sweep, "POLL", 0.05)


def search(trials=8, space=None, storage=None):
    entry = Entry(
        modality="image",
        name="simclr",
        method="simclr",
        family="contrastive",
        encoder={"name": "small_resnet", "architecture": "ResNet"},
        hyper={"width": 128, "temperature": 0.5, "strength": 1.0},
        training=Training(encoder="small_resnet", epochs=9, batch_size=256, optimizer="adamw", lr=2e-3),
    )
    block = Sweep(trials=trials, epochs=2, seed=0, space=space or SPACE, storage=storage)
    return sweep.Search(entry, block, sweep.space_of(entry, block), "image-simclr-0123456789ab")


def objective(entry, log):
    """A score that is best at temperature 0.2, strength 0.8; the strongest views diverge."""
    if entry.hyper["strength"] > 1.4:
        return None
    log(1, loss=1.0)
    return 60 - 10 * math.log(entry.hyper["temperature"] / 0.2) ** 2 - 5 * (entry.hyper["strength"] - 0.8) ** 2


def outcome(results):
    return [(r.number, r.value, r.params) for r in results]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What eight trials come to when nothing disturbs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("straight"))
        patch.setenv("MLFLOW_TRACKING_URI", "off")
        return sweep.work(search(), objective)


@pytest.fixture(scope="module")
def workers():
    """Starts processes that work as another `python -m stages.sweep` would. Their server imports torch once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stages.sweep"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield lambda stop=None, storage=None: start(context.Process(target=work_in, args=(os.getcwd(), stop, storage)))


def start(process):
    process.start()
    return process


def work_in(folder, stop, storage):
    """A worker that writes down what it tries. In its trial number `stop` it hangs, as if it trained for ever."""
    os.chdir(folder)
    calls = itertools.count()

    def slow(entry, log):
        if next(calls) == stop:
            Path("hanging").touch()
            time.sleep(600)
        time.sleep(0.05)
        with open("tried", "a") as file:
            print(entry.hyper, entry.training.batch_size, file=file)
        return objective(entry, log)

    sweep.work(search(storage=storage), slow)


# ---- Trials


def test_the_first_trial_is_the_entry_as_it_stands(straight):
    assert straight[0].params == DEFAULT
    assert [r.number for r in straight] == list(range(8))
    assert len({str(r.params) for r in straight}) == 8
    assert [r.value is None for r in straight] == [r.params["strength"] > 1.4 for r in straight]


def test_a_diverged_trial_is_a_result(straight):
    assert [r.number for r in straight if r.value is None] == [2]


def test_a_trial_has_the_sweeps_budget_and_a_rate_for_its_batch():
    trial = sweep.variant(search(), {"temperature": 0.1, "strength": 0.5, "batch_size": 64})
    assert trial.hyper == {"width": 128, "temperature": 0.1, "strength": 0.5}
    assert (trial.training.batch_size, trial.training.epochs) == (64, 2)
    assert trial.training.lr == pytest.approx(2e-3 * 64 / 256)
    default = sweep.variant(search(), DEFAULT)
    assert default.training.lr == 2e-3
    swept = search(space={"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "batch_size": {"choices": [64, 256]}})
    assert sweep.variant(swept, {"lr": 1e-3, "batch_size": 64}).training.lr == pytest.approx(1e-3 / 4)


@pytest.mark.parametrize("stop", [0, 6])
def test_a_killed_sweep_resumes_to_the_same_trials(stop, straight, workers):
    worker = workers(stop)
    while not Path("hanging").exists():
        assert worker.is_alive(), "the worker ended before it was to be killed"
        time.sleep(0.02)
    worker.kill()
    worker.join()
    tried = []
    results = sweep.work(search(), lambda entry, log: tried.append(entry) or objective(entry, log))
    assert outcome(results) == outcome(straight)
    assert len(tried) == 8 - stop


def test_a_sweep_that_a_trial_broke_resumes_to_the_same_trials(straight):
    calls = iter(range(100))

    def breaks(entry, log):
        if next(calls) == 3:
            raise MemoryError
        return objective(entry, log)

    with pytest.raises(MemoryError):
        sweep.work(search(), breaks)
    assert outcome(sweep.work(search(), breaks)) == outcome(straight)


def test_more_trials_continue_a_study(straight):
    assert outcome(sweep.work(search(trials=3), objective)) == outcome(straight)[:3]
    assert outcome(sweep.work(search(trials=8), objective)) == outcome(straight)
    assert outcome(sweep.work(search(trials=2), None)) == outcome(straight)[:2]


def test_two_workers_share_a_study(straight, workers):
    both = [workers(), workers()]
    for worker in both:
        worker.join()
    assert [worker.exitcode for worker in both] == [0, 0]
    tried = Path("tried").read_text().splitlines()
    assert len(tried) == len(set(tried)) == 8
    results = sweep.work(search(), None)
    assert len({str(r.params) for r in results}) == 8
    assert outcome(results)[: sweep.STARTUP] == outcome(straight)[: sweep.STARTUP]


def objective_of_two(entry, log):
    """Waits until two processes have a trial."""
    Path(f"process-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(Path().glob("process-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    return objective(entry, log)


def test_helpers_work_on_the_same_study(straight, workers):
    results = sweep.work_together(search(trials=4), objective_of_two, workers=2)
    assert len(list(Path().glob("process-*"))) == 2
    assert outcome(results) == outcome(straight)[:4]


def test_two_workers_that_begin_at_once_try_the_default_once():
    study = sweep.open_study(search())
    for _ in range(2):
        study.enqueue_trial(DEFAULT, user_attrs={sweep.REPEATS: 0})
    tried = []
    results = sweep.work(search(trials=4), lambda entry, log: tried.append(entry) or objective(entry, log))
    assert len(tried) == len({str(r.params) for r in results}) == 4


def test_the_last_trial_is_not_begun_twice(monkeypatch):
    sweep.work(search(trials=3), objective)
    study, four = sweep.open_study(search()), search(trials=4)
    other = sweep.open_study(search())
    ask = study.ask

    def beaten(space):
        other.ask(space).set_user_attr(sweep.WORKER, sweep.this_process())
        return ask(space)

    monkeypatch.setattr(study, "ask", beaten)
    assert sweep.claim(study, four) is None
    assert [t.state for t in study.trials[3:]] == [TrialState.RUNNING, TrialState.FAIL]


@pytest.mark.parametrize(
    ("worker", "alive"),
    [
        ({}, True),
        ({"started": 0.0}, False),  # the number of a process that is gone, given to another
        ({"pid": 2**22 + 1}, False),
        ({"host": "elsewhere", "pid": 2**22 + 1}, True),
    ],
)
def test_only_the_trials_of_dead_workers_are_taken_over(worker, alive, monkeypatch):
    study = sweep.open_study(search())
    trial = study.ask(search().space)
    assert sweep.holds(study.trials[0])  # not yet signed
    trial.set_user_attr(sweep.WORKER, {**sweep.this_process(), **worker})
    assert sweep.holds(study.trials[0]) == alive
    sweep.mend(study, search())
    assert len(study.trials) == (1 if alive else 2)
    assert study.trials[0].state is (TrialState.RUNNING if alive else TrialState.FAIL)


def test_a_silent_machine_is_given_up_in_the_end(monkeypatch):
    study = sweep.open_study(search())
    study.ask(search().space).set_user_attr(sweep.WORKER, {**sweep.this_process(), "host": "elsewhere"})
    monkeypatch.setattr(sweep, "SILENT", 0.0)
    assert not sweep.holds(study.trials[0])


def test_a_database_serves_as_well(straight, tmp_path):
    stored = search(trials=2, storage=f"sqlite:///{tmp_path}/study.db")
    assert outcome(sweep.work(stored, objective)) == outcome(straight)[:2]
    assert not (tmp_path / ".scratch").exists()


@pytest.fixture
def postgres():
    """The URL of a PostgreSQL server, started for the test and reached by a socket."""
    pytest.importorskip("psycopg", reason="needs psycopg, PostgreSQL's driver")
    found = [*sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")), shutil.which("initdb")]
    if not any(found):
        pytest.skip("needs PostgreSQL's server (Debian's package postgresql)")
    programs = Path(next(filter(None, found))).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        own = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if os.getuid() == 0:  # as whom the server refuses to run
            os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
            own["user"] = "nobody"
        data = f"{folder}/data"
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "sweeper", "--auth=trust", "--no-sync"], check=True, **own
        )
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"], **own
        )
        try:
            while subprocess.run([programs / "pg_isready", "-q", "-h", folder]).returncode:
                assert server.poll() is None, "PostgreSQL did not start"
                time.sleep(0.05)
            yield f"postgresql+psycopg://sweeper@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # at once, in order
            server.wait()


def test_two_workers_share_a_study_of_a_database_server(straight, workers, postgres):
    both = [workers(storage=postgres), workers(storage=postgres)]
    for worker in both:
        worker.join()
    assert [worker.exitcode for worker in both] == [0, 0]
    tried = Path("tried").read_text().splitlines()
    assert len(tried) == len(set(tried)) == 8
    storage = sweep.database(postgres)
    results = sweep.results_of(optuna.load_study(study_name=search().study, storage=storage), wanted=8)
    assert outcome(results)[: sweep.STARTUP] == outcome(straight)[: sweep.STARTUP]
    storage.remove_session()
    storage.engine.dispose()


def test_every_trial_is_tracked(monkeypatch):
    started, finished = [], []

    class Spy(tracking.Run):
        def finish(self, *status, **summary):
            finished.append((*status, summary))

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(tracking, "start", lambda kind, **given: started.append((kind, given)) or Spy(tracking.nowhere))
    results = sweep.work(search(), objective)
    assert finished == [("diverged" if r.value is None else "ok", {"validation": r.value}) for r in results]
    assert {kind for kind, _ in started} == {"sweep"}
    assert [given["key"] for _, given in started] == [f"image-simclr-0123456789ab-{i}" for i in range(8)]
    assert [given["params"]["hyper"]["temperature"] for _, given in started] == [
        r.params["temperature"] for r in results
    ]


def test_progress_says_score_best_and_time_left(capsys):
    sweep.work(search(trials=2, space={"batch_size": {"choices": [256, 512]}}), objective)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "simclr trial 0: 51.40 (batch_size 256); best 51.40 (trial 0); 1 to go, under a minute"
    assert second.startswith("simclr trial 1: ")
    assert second.endswith("; best 51.40 (trial 0)")


# ---- Mistakes


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "sweeps.simclr.space: names no parameter; add one"),
        (
            {"temprature": SPACE["temperature"]},
            "sweeps.simclr.space: unknown parameter 'temprature'; did you mean 'temperature'?",
        ),
        ({"epochs": {"low": 1, "high": 10}}, "sweeps.simclr.space: unknown parameter 'epochs'"),
        (
            {"strength": {"low": 1.5, "high": 0.5}},
            "space.strength: low must be less than high, but low is 1.5 and high is 0.5",
        ),
        ({"strength": {"low": 1.0, "high": 1.0}}, "space.strength: low must be less than high"),
        (
            {"strength": {"low": 0.0, "high": 1.5, "log": True}},
            "space.strength: a range with `log: true` needs low > 0",
        ),
        ({"strength": {"low": 0.0}}, "space.strength: expected {low: ..., high: ...} or {choices: [...]}"),
        (
            {"strength": {"low": 0.0, "high": 1.0, "choices": [1.0]}},
            "space.strength: give either `choices`, or `low` and `high`",
        ),
        ({"batch_size": {"choices": []}}, "space.batch_size.choices: expected different values, at least one"),
        ({"batch_size": {"choices": [256, 256]}}, "space.batch_size.choices: expected different values"),
        ({"batch_size": {"choices": [64, 128]}}, "space.batch_size.choices: lacks 256, the value in use"),
        ({"strength": {"low": 0.0, "high": 0.5}}, "space.strength: leaves out 1.0, the value in use"),
        ({"batch_size": {"low": 64.5, "high": 512}}, "space.batch_size: takes whole numbers, but low is 64.5"),
        (
            {"clip": {"low": 0.1, "high": 1.0}},
            "space.clip: the value in use is None, which lies in no range; give `choices`",
        ),
        (
            {"temperature": {"low": -1.0, "high": 1.0}},
            "sweeps.simclr.space.temperature: input should be greater than 0",
        ),
        (
            {"batch_size": {"choices": [1, 256]}},
            "sweeps.simclr.space.batch_size: input should be greater than or equal to 2",
        ),
    ],
)
def test_a_space_that_makes_no_sense_is_one_clear_line(space, message):
    entry = search().entry
    with pytest.raises(InputError) as caught:
        sweep.space_of(entry, Sweep(trials=2, epochs=1, space=space))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_larger_than_the_data_is_refused():
    sweep.check_data(search(), DATA)
    small = {**DATA, "splits": {"train": {"rows": 500}}}
    with pytest.raises(InputError, match=r"batch_size: 512 is larger than the data: emoji has 500 rows"):
        sweep.check_data(search(), small)
    with pytest.raises(InputError, match=r"batch_size: 1024 is larger than the data"):
        sweep.check_data(search(space={"batch_size": {"low": 64, "high": 1024}}), small)


def test_data_without_labels_are_refused():
    with pytest.raises(InputError, match=r"^benchmark.image.sweeps: emoji has no labels to score by"):
        sweep.check_data(search(), {**DATA, "classes": []})


@pytest.mark.parametrize("storage", ["nonsense", "sqlite:////nowhere/at/all/study.db"])
def test_a_storage_that_cannot_be_used_is_one_clear_line(storage):
    with pytest.raises(InputError, match=r"^sweeps.simclr.storage: cannot use .*: [^\n]+$"):
        sweep.open_study(search(storage=storage))


# ---- What it leaves


def report(folder, results, sought):
    """{name: bytes} of the files that a sweep leaves."""
    block = sweep.adoption(sought, "laptop", sweep_report.best_of(results))
    sweep_report.write(folder, sought.sweep, sought.space, results, block)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def files(straight, tmp_path_factory):
    return report(tmp_path_factory.mktemp("report"), straight, search())


def test_the_report_is_the_same_bytes_whenever_the_trials_are(files, straight, tmp_path):
    figures = {f"{name}.svg" for name in ("importance", "slice", "parallel")}
    assert files.keys() == {"trials.csv", "best.yaml", "study.json"} | figures
    slower = [dataclasses.replace(r, seconds=r.seconds + 60) for r in straight]
    again = report(tmp_path / "reports", slower, search())
    assert {name for name in files if files[name] != again[name]} == {"trials.csv"}


def test_the_table_holds_every_trial(files, straight):
    lines = files["trials.csv"].decode().splitlines()
    assert lines[0] == "number,state,value,temperature,strength,batch_size,seconds"
    rows = [line.split(",") for line in lines[1:]]
    assert [row[0] for row in rows] == [str(i) for i in range(8)]
    assert [row[1] for row in rows] == ["diverged" if r.value is None else "complete" for r in straight]
    assert [row[2] for row in rows] == ["" if r.value is None else str(r.value) for r in straight]
    assert rows[0][3:6] == ["0.5", "1.0", "256"]


def test_the_study_names_the_best_and_two_importances(files, straight):
    study = json.loads(files["study.json"])
    best = max(r.value for r in straight if r.value is not None)
    assert (study["best_value"], study["default_value"], study["trials"]) == (best, straight[0].value, 8)
    assert study["importance"].keys() == {"PED-ANOVA", "fANOVA"}
    for shares in study["importance"].values():
        assert shares.keys() == SPACE.keys()
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_a_trial_is_a_line_through_its_settings_to_its_score():
    space = {
        "temperature": FloatDistribution(0.01, 1.0, log=True),
        "strength": FloatDistribution(0.0, 2.0),
        "batch_size": CategoricalDistribution((64, 128, 256)),
    }
    results = [
        sweep_report.Result(0, 60.0, {"temperature": 0.1, "strength": 0.5, "batch_size": 256}, 1.0),
        sweep_report.Result(1, 50.0, {"temperature": 1.0, "strength": 2.0, "batch_size": 64}, 1.0),
        sweep_report.Result(2, None, {"temperature": 0.01, "strength": 1.0, "batch_size": 128}, 1.0),
        sweep_report.Result(3, 52.5, {"temperature": 0.01, "strength": 0.0, "batch_size": 128}, 1.0),
    ]
    (axes,) = sweep_report.draw_parallel(results, space).axes
    lines = [line for line in axes.lines if len(line.get_ydata()) == 4]
    assert [line.get_linestyle() for line in lines] == [":", "-", "-", "-"]  # the best is drawn last, over the others
    expected = [[0, 0.5, 0.5, 0], [1, 1, 0, 0], [0, 0, 0.5, 0.25], [0.5, 0.25, 1, 1]]
    assert [list(line.get_ydata()) for line in lines] == [pytest.approx(places) for places in expected]
    assert lines[-1].get_color() == "black"
    said = [text.get_text() for text in axes.texts]
    assert said == ["0.01", "1", "0", "2", "64", "256", "50.0", "60.0"]


def best_yaml(results):
    block = sweep.adoption(search(), "laptop", sweep_report.best_of(results))
    return sweep_report.best_yaml(search().sweep, results, block)


def test_best_yaml_is_ready_to_paste():
    other = {"temperature": 0.1, "strength": 0.5, "batch_size": 128}
    text = best_yaml([sweep_report.Result(0, 50.0, DEFAULT, 1.0), sweep_report.Result(1, 61.25, other, 1.0)])
    assert text.startswith("# 61.25 (linear probe on validation data, %) in trial 1; the settings in use scored 50.00")
    assert yaml.safe_load(text) == {
        "methods": {"simclr": {"temperature": 0.1, "strength": 0.5}},
        "training": {"laptop": {"override": {"simclr": {"batch_size": 128, "lr": 1e-3}}}},
    }


def test_where_the_default_is_best_no_training_is_overridden():
    text = best_yaml([sweep_report.Result(0, 50.0, DEFAULT, 1.0)])
    assert yaml.safe_load(text) == {"methods": {"simclr": {"temperature": 0.5, "strength": 1.0}}}


def test_a_sweep_in_which_all_diverged_is_reported(tmp_path):
    files = report(tmp_path / "reports", [sweep_report.Result(0, None, DEFAULT, 1.0)], search())
    assert files["best.yaml"].startswith(b"# All 1 trials diverged")
    study = json.loads(files["study.json"])
    assert (study["best_value"], study["default_value"], study["importance"]) == (None, None, {})


def test_optuna_says_nothing_of_its_own(capfd):
    sweep.work(search(trials=1), objective)
    assert capfd.readouterr().err == ""
