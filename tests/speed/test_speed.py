"""How speed is measured: by a clock that the tests turn, and on methods that are small."""

import json
import os
import sys
from functools import partial
from importlib import import_module
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_methods.modalities import image
from stages.common import settings
from stages.common.files import write_json
from stages.common.settings import InputError, Training
from stages.reporting import speed_report
from stages.speed import __main__ as speed
from stages.speed import entries, growth, overhead, timing
from stages.speed.trainer import PRODUCTS, Clock, Trainer, in_products, profile
from stages.training.cost import multiply_adds

CPU = torch.device("cpu")
SMALL = {"name": "small", "architecture": "ResNet", "width": 8, "blocks": [1, 1], "stride": 1}
TRAINING = Training(encoder="small", epochs=1, batch_size=32, optimizer="adamw", lr=3e-3, precision="float32")


class Time:
    """A clock that passes only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(timing.time, "perf_counter", made)
    return made


@pytest.fixture
def folder(tmp_path: Path, pictures: Tensor) -> Path:
    """A prepared data folder of small pictures."""
    (tmp_path / "data/image/train").mkdir(parents=True)
    np.save(tmp_path / "data/image/train/image.npy", pictures.numpy())
    splits = {"train": {"rows": len(pictures)}}
    manifest = {"data": "small", "classes": [], "facts": {"size": 16}, "hash": "0" * 64, "splits": splits}
    write_json(tmp_path / "data/image/manifest.json", manifest)
    return tmp_path / "data/image"


def trainer(folder: Path, name: str, **hyper) -> Trainer:
    entry = settings.read().entry("image", name)
    changes = {"encoder": SMALL, "training": TRAINING, "hyper": {**entry.hyper, **hyper}}
    return Trainer(entry.model_copy(update=changes), folder, CPU)


def test_contestants_run_in_turns_and_the_first_turn_does_not_count(time):
    ran = []

    def turn(name, seconds):
        pace = iter(seconds)

        def work():
            ran.append(name)
            time.now += next(pace)
            return 12

        return work

    found = timing.race({"a": turn("a", [100, 1, 2, 6]), "b": turn("b", [100, 3, 4, 12])}, turns=3)
    assert ran == ["a", "b"] * 4
    assert found == {"a": {"median": 6, "low": 2, "high": 12}, "b": {"median": 3, "low": 1, "high": 4}}


def test_the_quickest_go_counts(time):
    pace = iter([5, 3, 4, 2, 9])

    def work():
        time.now += next(pace)

    assert timing.quickest(work, CPU, seconds=14) == 2  # after four goes 14 seconds have passed
    assert next(pace) == 9


def test_a_phase_within_another_counts_for_itself_alone(time):
    clock = Clock(CPU)
    with clock("forward"):
        time.now += 1
        with clock("views"):
            time.now += 10
            with clock("views"):
                time.now += 20
        time.now += 2
    time.now += 1000  # between phases
    with clock("backward"):
        time.now += 4
    assert clock.seconds == {"forward": 3, "views": 30, "backward": 4}


def test_phases_are_the_views_the_passes_and_the_optimizer(folder):
    whole = trainer(folder, "moco", queue=32)
    before, optimizer = image.simclr_view, whole.optimizer.step
    shares = profile(whole, steps=2)
    assert shares.keys() == {"batch", "views", "forward", "backward", "optimizer", "after_step"}
    assert sum(shares.values()) == pytest.approx(100)
    assert all(share > 0 for share in shares.values())
    assert (image.simclr_view, whole.optimizer.step) == (before, optimizer)  # as it was


def test_a_trainer_trains(folder):
    whole = trainer(folder, "simclr")
    before = whole.method.encoder.stem.weight.clone()
    assert whole.turn(seconds=0) == TRAINING.batch_size  # at least a step
    assert whole.taken == 1
    assert not before.equal(whole.method.encoder.stem.weight)


def test_training_multiplies_three_times_as_often_as_the_forward_pass_but_for_the_pictures_gradient(folder):
    whole = trainer(folder, "simclr")
    batch = whole.columns.batch(0, TRAINING.batch_size, seed=0)
    forward = multiply_adds(lambda: whole.method(batch), TRAINING.batch_size)
    stem = 2 * 16 * 16 * whole.method.encoder.stem.weight.numel()  # of both views
    assert whole.multiply_adds() == pytest.approx(3 * forward - stem, rel=1e-3)


def test_every_entry_that_takes_steps_is_measured_and_some_with_a_wide_encoder(folder, params, monkeypatch):
    monkeypatch.setattr(entries, "WIDE", {"simclr": {**SMALL, "name": "wide"}})
    monkeypatch.chdir(folder.parents[1])
    few = params.benchmark["image"].model_copy(update={"methods": ["untrained", "simclr"]})
    settings = params.model_copy(update={"benchmark": {**params.benchmark, "image": few}})  # no data but pictures

    def race(contestants):
        assert all(turn() > 0 for turn in contestants.values())
        return {"entry": {"median": 300.0}, "product": {"median": 7.0}}

    monkeypatch.setattr(entries, "race", race)
    found = entries.methods(settings, 0.01)
    assert list(found) == ["image/simclr", "image/simclr, wide"]
    for reached in found.values():
        assert reached["share_of_peak"] == pytest.approx(100 * reached["multiply_adds"] * 300 / (2048**3 * 7))
        assert sum(reached["phases"].values()) == pytest.approx(100)
        assert 0 < reached["products"] < 100
    assert found["image/simclr"]["multiply_adds"] != found["image/simclr, wide"]["multiply_adds"]


class Weight:
    """A contestant of which all is known."""

    device = CPU

    def __init__(self, rows: int):
        self.rows = rows

    def step(self):
        x = torch.ones(self.rows, self.rows)
        return x @ x if self.rows > 1 else x.relu()


def test_products_are_told_from_the_rest():
    assert in_products(Weight(1000), steps=2) > 80
    assert in_products(Weight(1), steps=2) == 0


def test_every_kind_of_product_is_known_by_its_operators_names():
    yes = "mm addmm bmm baddbmm mkldnn_convolution convolution_backward cudnn_convolution _scaled_mm"
    yes += " _scaled_dot_product_flash_attention_for_cpu_backward"
    no = "native_batch_norm_backward threshold_backward _softmax mul_ grid_sampler_2d lerp _fused_adamw_ layer_norm"
    assert all(PRODUCTS.search(f"aten::{name}") for name in yes.split())
    assert not any(PRODUCTS.search(f"aten::{name}") for name in no.split())


def test_contestants_apart_have_a_process_each_with_as_many_threads():
    with timing.apart(partial(import_module, "os")) as one, timing.apart(partial(import_module, "torch")) as other:
        process, threads = methodcaller("getpid"), methodcaller("get_num_threads")
        assert one(process).result() == one(process).result() != os.getpid()
        assert other(threads).result() == torch.get_num_threads()
        with pytest.raises(AttributeError):
            other(process).result()  # what goes wrong there is told here


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # DINO's head in lightly
@pytest.mark.parametrize("name", ["simclr", "byol", "moco", "barlow_twins", "dino"])
def test_a_peer_learns_from_the_same_pictures(name, folder):
    pytest.importorskip("lightly")
    from stages.speed.peers import PEERS, Kornia, Lightly, our_views, pil_views

    assert name in PEERS

    entry = trainer(folder, name, **({"queue": 32} if name == "moco" else {})).entry
    modules = Lightly(name, our_views, entry, folder, CPU)
    student = [p.clone() for p in modules.model.student.parameters()]
    teacher = [p.clone() for p in modules.model.teacher.parameters()] if modules.model.teacher else []
    assert modules.turn(seconds=0) == TRAINING.batch_size
    moved = [not p.equal(q) for p, q in zip(student, modules.model.student.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2  # a bias before a norm has no gradient
    if teacher:
        followed = zip(teacher, modules.model.teacher.parameters(), strict=True)
        assert any(not p.equal(q) for p, q in followed)
    stock = Lightly(name, pil_views, entry, folder, CPU)
    assert stock.turn(seconds=0) == TRAINING.batch_size
    assert not stock.gate.is_set()  # between turns its workers rest
    stock.gate.set()  # so that they see that they are to end
    ours = image.simclr_view
    assert Kornia(entry, folder, CPU).turn(seconds=0) == TRAINING.batch_size
    assert image.simclr_view is ours


def test_kornias_views_are_as_strong_as_ours(pictures):
    """On average over many they move the pictures as far from what they were."""
    pytest.importorskip("kornia")
    from stages.speed.peers import kornia_view

    x = image.unit(pictures).repeat(4, 1, 1, 1)
    torch.manual_seed(0)
    for strength in (0.25, 0.5, 1.0):
        ours, theirs = ((view(x, strength) - x).abs().mean().item() for view in (image.simclr_view, kornia_view))
        assert theirs == pytest.approx(ours, rel=0.15), strength


def test_it_writes_what_it_measured_and_keeps_the_rest_of_the_same_device(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "OUT", tmp_path / "speed.json")
    monkeypatch.setattr(speed, "overhead", lambda: {"import": {"plan": 0.5}})

    def measured(*parts: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["speed", *parts, "--seconds", "0.01"])
        speed.main()
        return json.loads((tmp_path / "speed.json").read_text())

    found = measured("limit", "overhead")
    assert found["overhead"] == {"import": {"plan": 0.5}}
    assert all(value > 0 for value in found["limit"].values())
    write_json(tmp_path / "speed.json", {**found, "overhead": {}, "growth": {"width": []}})
    assert measured("overhead") == {**found, "growth": {"width": []}}
    for elsewhere in ({"device": "cpu: another"}, {"precision": "float16"}, {"torch": "1.0"}):
        write_json(tmp_path / "speed.json", {**found, **elsewhere})
        assert measured("overhead") == {key: value for key, value in found.items() if key != "limit"}


def test_an_unknown_part_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed", "limits"])
    with pytest.raises(InputError, match="no part limits; its parts are limit, methods"):
        speed.main()


def test_a_pipeline_of_done_stages_is_idle():
    found = overhead.idle(3)  # it raises where a stage runs that must not: its command would be missing
    assert found["repro"] > 0
    assert found["status"] > 0


def test_pictures_of_noise_are_data_to_train_on():
    with growth.noise(64, 16) as folder:
        assert trainer(folder, "simclr").turn(seconds=0) == TRAINING.batch_size
    assert not folder.exists()


def test_seeds_side_by_side_share_the_threads(folder):
    make = partial(Trainer, trainer(folder, "simclr").entry, folder, CPU)
    assert growth.side_by_side(make, seeds=2, seconds=0) > 0


def test_what_stands_around_a_stage_is_told_from_its_work(monkeypatch):
    times = {("pretrain", "untrained"): 2.0, ("evaluate", "untrained"): 1.0, ("pretrain", "simclr"): 10.0}
    stores = []

    def taken(command, where=None, goes=3, **variables):
        if where is None:
            return 0.5  # an import
        assert (where / "params.yaml").exists()
        _, _, stage, _, entry = command
        if (store := variables["MLFLOW_TRACKING_URI"]) != "off":
            stores.append(store)
        return times[stage.removeprefix("stages."), entry] + 3 * (store != "off")

    monkeypatch.setattr(overhead, "taken", taken)
    monkeypatch.setattr(overhead, "idle", lambda stages: {"repro": 1.0, "status": 0.5})
    found = overhead.overhead()
    assert len(set(stores)) == 3  # a store has an entry once
    assert found["import"]["pretrain"] == 0.5
    assert (found["nothing"], found["tracking"]) == (2, 30)


def test_what_stands_around_the_work_is_told():
    found = {"import": {"plan": 0.55}, "nothing": 6.04, "dvc": [{"at": 30, "repro": 1.21, "status": 1.0}]}
    table = speed_report.overhead(found | {"tracking": 2.3})
    assert [row[1] for row in table.rows] == ["0.6 s", "6.0 s", "1.2 s", "1.0 s", "2.30 %"]


def test_the_exponent_is_the_slope_on_logarithmic_axes():
    assert speed_report.exponent([{"at": n, "seconds": 7 * n**2} for n in (3, 5, 50)]) == pytest.approx(2)
    assert speed_report.exponent([{"at": n, "seconds": 7} for n in (3, 5)]) == pytest.approx(0)


RATIOS = {
    "over_kornia": 1.25,
    "over_modules": 1.5,
    "over_stock": 4.25,
    "compiled_over_modules": 1.75,
    "compiled_over_stock": 5.0,
}


def test_tables_say_what_was_measured_and_nothing_of_the_rest(tmp_path):
    def pace(median: float) -> dict[str, float]:
        return {"median": median, "low": median / 2, "high": median * 2}

    found = {
        "device": "cpu: made, 2 threads",
        "precision": "float16",
        "torch": "2.0",
        "limit": {"tera_multiply_adds_float32": 0.25, "copy_gigabytes": 12.6},
        "peers": {"simclr": {"ours": pace(4000), **RATIOS, "phases": {"views": 3.14}, "products": 61.6}},
        "growth": {"width": [{"at": 16, "seconds": 1e-3}, {"at": 64, "seconds": 2e-3}]},
        "methods": {
            "image/simclr": {
                "samples_per_second": pace(1234),
                "multiply_adds": 9.5e6,
                "share_of_peak": 33.3,
                "phases": {"forward": 60.0, "backward": 40.0},
                "products": 71.0,
            }
        },
    }
    write_json(tmp_path / "reports/speed.json", found)
    read = speed_report.read(tmp_path)
    assert "cpu: made, 2 threads" in read.heading
    assert "0.25 in float32 of 10^12" in read.heading
    del found["limit"]
    assert speed_report.heading(found) == "Measured on cpu: made, 2 threads, in float16, with torch 2.0."
    rows = {table.title: table.rows for table in read.tables}
    assert rows == {
        "Beside lightly and kornia": [
            ["simclr", "4,000 (2,000 to 8,000)", "1.25", "1.50", "4.25", "1.75", "5.00", "62", "3.1"]
        ],
        "As work grows": [["width", "16, 64", "1,000, 2,000", "+0.50"]],
        "Where a step's time goes": [
            ["image/simclr", "1,234 (617 to 2,468)", "9.5", "33.3", "71", "0", "0", "60", "40", "0", "0"]
        ],
    }
    assert all(len(row) == len(table.header) for table in read.tables for row in table.rows)


def test_nothing_is_read_where_nothing_was_measured(tmp_path):
    assert not speed_report.read(tmp_path).tables
