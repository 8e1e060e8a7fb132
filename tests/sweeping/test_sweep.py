import copy
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
from datetime import timedelta
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from stages import sweep
from stages.common.settings import Entry, InputError, Sweep, Training
from stages.sweeping import outcome as left
from stages.sweeping import space as spaces
from stages.sweeping import study as studies

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
    monkeypatch.setattr(studies, "POLL", 0.05)


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
    return spaces.Search(entry, block, "image-simclr-0123456789ab")


def objective(entry):
    """A score that is best at temperature 0.2, strength 0.8; the strongest views diverge."""
    if entry.hyper["strength"] > 1.4:
        return None
    return 60 - 10 * math.log(entry.hyper["temperature"] / 0.2) ** 2 - 5 * (entry.hyper["strength"] - 0.8) ** 2


def outcome(results):
    return [(r.number, r.value, r.params) for r in results]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What eight trials come to when nothing disturbs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("straight"))
        return studies.work(search(), objective)


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

    def slow(entry):
        if next(calls) == stop:
            Path("hanging").touch()
            time.sleep(600)
        time.sleep(0.05)
        with open("tried", "a") as file:
            print(entry.hyper, entry.training.batch_size, file=file)
        return objective(entry)

    studies.work(search(storage=storage), slow)


# ---- Trials


def test_the_first_trial_is_the_entry_as_it_stands(straight):
    assert straight[0].params == DEFAULT
    assert [r.number for r in straight] == list(range(8))
    assert len({str(r.params) for r in straight}) == 8
    assert [r.value is None for r in straight] == [r.params["strength"] > 1.4 for r in straight]


def test_a_diverged_trial_is_a_result(straight):
    assert [r.number for r in straight if r.value is None] == [5, 7]


def test_a_trial_has_the_sweeps_budget_and_a_rate_for_its_batch():
    trial = spaces.variant(search(), {"temperature": 0.1, "strength": 0.5, "batch_size": 64})
    assert trial.hyper == {"width": 128, "temperature": 0.1, "strength": 0.5}
    assert (trial.training.batch_size, trial.training.epochs) == (64, 2)
    assert trial.training.lr == pytest.approx(2e-3 * 64 / 256)
    default = spaces.variant(search(), DEFAULT)
    assert default.training.lr == 2e-3
    swept = search(space={"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "batch_size": {"choices": [64, 256]}})
    assert spaces.variant(swept, {"lr": 1e-3, "batch_size": 64}).training.lr == pytest.approx(1e-3 / 4)


@pytest.mark.parametrize("stop", [0, 6])
def test_a_killed_sweep_resumes_to_the_same_trials(stop, straight, workers):
    worker = workers(stop)
    while not Path("hanging").exists():
        assert worker.is_alive(), "the worker ended before it was to be killed"
        time.sleep(0.02)
    worker.kill()
    worker.join()
    tried = []
    results = studies.work(search(), lambda entry: tried.append(entry) or objective(entry))
    assert outcome(results) == outcome(straight)
    assert len(tried) == 8 - stop


def test_a_sweep_that_a_trial_broke_resumes_to_the_same_trials(straight):
    calls = iter(range(100))

    def breaks(entry):
        if next(calls) == 3:
            raise MemoryError
        return objective(entry)

    with pytest.raises(MemoryError):
        studies.work(search(), breaks)
    assert outcome(studies.work(search(), breaks)) == outcome(straight)


def test_more_trials_continue_a_study(straight):
    assert outcome(studies.work(search(trials=3), objective)) == outcome(straight)[:3]
    assert outcome(studies.work(search(trials=8), objective)) == outcome(straight)
    assert outcome(studies.work(search(trials=2), None)) == outcome(straight)[:2]


def test_two_workers_share_a_study(straight, workers):
    both = [workers(), workers()]
    for worker in both:
        worker.join()
    assert [worker.exitcode for worker in both] == [0, 0]
    tried = Path("tried").read_text().splitlines()
    assert len(tried) == len(set(tried)) == 8
    results = studies.work(search(), None)
    assert len({str(r.params) for r in results}) == 8
    assert outcome(results)[: studies.STARTUP] == outcome(straight)[: studies.STARTUP]


def objective_of_two(entry):
    """Waits until two processes have a trial."""
    Path(f"process-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(Path().glob("process-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    return objective(entry)


def test_helpers_work_on_the_same_study(straight, workers):
    results = studies.work_together(search(trials=4), objective_of_two, workers=2)
    assert len(list(Path().glob("process-*"))) == 2
    assert outcome(results) == outcome(straight)[:4]


def test_two_workers_that_begin_at_once_queue_each_trial_once_too_often_and_try_it_once():
    for _ in range(2):
        study = studies.open_study(search())
        for _ in range(4):
            study.enqueue_trial({})
    tried = []
    results = studies.work(search(trials=4), lambda entry: tried.append(entry) or objective(entry))
    assert len(tried) == len({str(r.params) for r in results}) == 4
    assert [t.state for t in study.trials[4:]] == [TrialState.WAITING] * 4


def test_the_last_trial_is_not_begun_twice(monkeypatch):
    studies.work(search(trials=3), objective)
    study, other = studies.open_study(search()), studies.open_study(search())
    studies.queue_up(study, 4)
    ask = study.ask

    def beaten():
        other.ask()
        return ask()

    monkeypatch.setattr(study, "ask", beaten)
    assert studies.claim(study, 4) is None
    assert studies.claim(study, 4) is None  # and what it began in its place is none of the four
    assert [t.state for t in study.trials[3:]] == [TrialState.RUNNING, TrialState.WAITING]


@pytest.mark.parametrize(
    ("worker", "alive"),
    [
        ({}, True),
        ({"started": 0.0}, False),  # the number of a process that is gone, given to another
        ({"pid": 2**22 + 1}, False),
        ({"host": "elsewhere", "pid": 2**22 + 1}, True),
    ],
)
def test_only_the_trials_of_dead_workers_are_taken_over(worker, alive):
    study = studies.open_study(search())
    trial = study.ask()
    assert not studies.lost(study.trials[0])  # not yet signed
    trial.set_user_attr("worker", {**studies.this_process(), **worker})
    assert studies.lost(study.trials[0]) != alive
    studies.queue_up(study, 1)
    assert [t.state for t in study.trials] == [TrialState.RUNNING if alive else TrialState.WAITING]
    if not alive:
        study.ask()
        assert not studies.lost(study.trials[0])  # whose new worker is not taken for the old one


@pytest.mark.parametrize(("limit", "signed"), [("ELSEWHERE", True), ("UNSIGNED", False)])
def test_who_cannot_be_asked_is_given_up_in_the_end(limit, signed, monkeypatch):
    study = studies.open_study(search())
    trial = study.ask()
    if signed:
        trial.set_user_attr("worker", {**studies.this_process(), "host": "elsewhere"})
    assert not studies.lost(study.trials[0])
    monkeypatch.setattr(studies, limit, timedelta(0))
    assert studies.lost(study.trials[0])


def test_of_two_results_of_one_trial_the_first_counts():
    """A worker that was taken for dead is not, and ends its trial while that waits for another, or has ended."""
    study = studies.open_study(search())
    studies.queue_up(study, 1)
    trial = studies.claim(study, 1)
    studies.put(study, trial, TrialState.WAITING, worker=None)
    for score in (51.0, 52.0):
        studies.put(study, trial, TrialState.COMPLETE, score, seconds=1.0)
    studies.put(study, trial, TrialState.WAITING, worker=None)
    assert [t.value for t in studies.results_of(study, 1)] == [51.0]


@pytest.mark.parametrize("axes", range(4))
def test_a_trial_killed_while_its_values_are_drawn_draws_the_rest_as_it_would_have(axes, straight):
    """The seventh: TPE draws it."""
    studies.work(search(trials=6), objective)
    study = studies.open_study(search())
    studies.queue_up(study, 7)
    trial, whole = studies.claim(study, 7), search().sweep
    some = whole.model_copy(update={"space": dict(list(whole.space.items())[:axes])})
    studies.draw(trial, dataclasses.replace(search(), sweep=some))
    studies.put(study, trial, TrialState.WAITING, worker=None)
    assert outcome(studies.work(search(trials=7), objective)) == outcome(straight)[:7]


def test_a_database_serves_as_well(straight, tmp_path):
    stored = search(trials=2, storage=f"sqlite:///{tmp_path}/study.db")
    assert outcome(studies.work(stored, objective)) == outcome(straight)[:2]
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
    storage = studies.database(postgres)
    results = studies.results_of(optuna.load_study(study_name=search().study, storage=storage), wanted=8)
    assert outcome(results)[: studies.STARTUP] == outcome(straight)[: studies.STARTUP]
    storage.remove_session()
    storage.engine.dispose()


def test_a_trial_costs_the_seconds_of_the_processor(monkeypatch):
    """However long it waits for it."""

    def slow(entry):
        time.sleep(0.3)
        while time.process_time() < busy:
            pass
        return 50.0

    busy = time.process_time() + 0.2
    (result,) = studies.work(search(trials=1), slow)
    assert 0.1 < result.user_attrs["seconds"] < 0.3 < result.duration.total_seconds()


def test_progress_says_score_best_and_time_left(capsys):
    studies.work(search(trials=2, space={"batch_size": {"choices": [256, 512]}}), objective)
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
        spaces.check_space(entry, Sweep(trials=2, epochs=1, space=space))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_larger_than_the_data_is_refused():
    spaces.check_data(search(), DATA)
    small = {**DATA, "splits": {"train": {"rows": 500}}}
    with pytest.raises(InputError, match=r"batch_size: 512 is larger than the data: emoji has 500 rows"):
        spaces.check_data(search(), small)
    with pytest.raises(InputError, match=r"batch_size: 1024 is larger than the data"):
        spaces.check_data(search(space={"batch_size": {"low": 64, "high": 1024}}), small)


def test_data_without_labels_are_refused():
    with pytest.raises(InputError, match=r"^benchmark.image.sweeps: emoji has no labels to score by"):
        spaces.check_data(search(), {**DATA, "classes": []})


@pytest.mark.parametrize("storage", ["nonsense", "sqlite:////nowhere/at/all/study.db"])
def test_a_storage_that_cannot_be_used_is_one_clear_line(storage):
    with pytest.raises(InputError, match=r"^sweeps.simclr.storage: cannot use .*: [^\n]+$"):
        studies.open_study(search(storage=storage))


# ---- What it leaves


def result(number, value, params):
    """A finished trial, as a study has it."""
    space = {
        "temperature": FloatDistribution(0.01, 1.0, log=True),
        "strength": FloatDistribution(0.0, 2.0),
        "batch_size": CategoricalDistribution((64, 128, 256)),
    }
    state = TrialState.PRUNED if value is None else TrialState.COMPLETE
    made = create_trial(state=state, value=value, params=params, distributions=space, user_attrs={"seconds": 1.0})
    made.number = number
    return made


def report(folder, results, sought):
    """{name: bytes} of the files that a sweep leaves."""
    block = sweep.adoption(sought, "laptop", studies.best_of(results))
    left.write(folder, sought, results, block)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def files(straight, tmp_path_factory):
    return report(tmp_path_factory.mktemp("report"), straight, search())


def test_the_report_is_the_same_bytes_whenever_the_trials_are(files, straight, tmp_path):
    figures = {f"{name}.svg" for name in ("importance", "slice", "parallel")}
    assert files.keys() == {"trials.csv", "best.yaml", "study.json"} | figures
    slower = copy.deepcopy(straight)
    for result in slower:
        result.user_attrs["seconds"] += 60
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
    results = [
        result(0, 60.0, {"temperature": 0.1, "strength": 0.5, "batch_size": 256}),
        result(1, 50.0, {"temperature": 1.0, "strength": 2.0, "batch_size": 64}),
        result(2, None, {"temperature": 0.01, "strength": 1.0, "batch_size": 128}),
        result(3, 52.5, {"temperature": 0.01, "strength": 0.0, "batch_size": 128}),
    ]
    (axes,) = left.draw_parallel(results, results[0].distributions).axes
    lines = [line for line in axes.lines if len(line.get_ydata()) == 4]
    assert [line.get_linestyle() for line in lines] == [":", "-", "-", "-"]  # the best is drawn last, over the others
    expected = [[0, 0.5, 0.5, 0], [1, 1, 0, 0], [0, 0, 0.5, 0.25], [0.5, 0.25, 1, 1]]
    assert [list(line.get_ydata()) for line in lines] == [pytest.approx(places) for places in expected]
    assert lines[-1].get_color() == "black"
    said = [text.get_text() for text in axes.texts]
    assert said == ["0.01", "1", "0", "2", "64", "256", "50.0", "60.0"]


def best_yaml(results):
    block = sweep.adoption(search(), "laptop", studies.best_of(results))
    return left.best_yaml(search().sweep, results, block)


def test_best_yaml_is_ready_to_paste():
    other = {"temperature": 0.1, "strength": 0.5, "batch_size": 128}
    text = best_yaml([result(0, 50.0, DEFAULT), result(1, 61.25, other)])
    assert text.startswith("# 61.25 (linear probe on validation data, %) in trial 1; the settings in use scored 50.00")
    assert yaml.safe_load(text) == {
        "methods": {"simclr": {"temperature": 0.1, "strength": 0.5}},
        "training": {"laptop": {"override": {"simclr": {"batch_size": 128, "lr": 1e-3}}}},
    }


def test_where_the_default_is_best_no_training_is_overridden():
    text = best_yaml([result(0, 50.0, DEFAULT)])
    assert yaml.safe_load(text) == {"methods": {"simclr": {"temperature": 0.5, "strength": 1.0}}}


def test_a_sweep_in_which_all_diverged_is_reported(tmp_path):
    files = report(tmp_path / "reports", [result(0, None, DEFAULT)], search())
    assert files["best.yaml"].startswith(b"# All 1 trials diverged")
    study = json.loads(files["study.json"])
    assert (study["best_value"], study["default_value"], study["importance"]) == (None, None, {})


def test_optuna_says_nothing_of_its_own(capfd):
    studies.work(search(trials=1), objective)
    assert capfd.readouterr().err == ""
