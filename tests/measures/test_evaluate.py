"""Evaluation from files to files, on a small made-up data set with a real encoder."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

import ssl_methods
from stages import evaluate, plan
from stages.common import settings
from stages.common.files import write_json
from stages.common.settings import Evaluation, InputError
from stages.measures import frozen, low_label

ROWS = {"train": 90, "validation": 45, "test": 45}
ENCODER = {"name": "tiny", "architecture": "ResNet", "width": 4, "blocks": [1, 1], "stride": 2}
PROTOCOL = Evaluation(strengths=[1e-4, 1e-2], neighbours=[1, 5, 1000], batch_size=32)
WHOLE = Evaluation(
    strengths=[1e-4, 1e-2],
    neighbours=[1, 5],
    batch_size=32,
    low_label={"shares": [0.01, 0.2], "per_class": [1], "draws": 3, "strengths": [1e-2, 1.0]},
    finetune={"epochs": 3, "batch_size": 16, "lr": 0.01},
    transfer={"label": {"image": "shade"}, "strengths": [1e-3, 1e-1]},
)
TUNED = ("finetune", "transfer")  # what PROTOCOL leaves out
ACCURACIES = ("linear", "linear_depth", "knn")
HEALTH = ("effective_rank", "spread", "dead", "lidar", "alignment", "uniformity", "features")
SCORES = {"status", *ACCURACIES, *TUNED, "low_label", *HEALTH}
TABLES = {"depths", "probe", "retrieval", "zero_shot", "low_label", "finetune_curve", "transfer_details", "clustering"}
TABLES |= {"confusion", "map"}
DETAILS = {"status", "choices", "data", "symptom", "neighbours", "low_label_error", *TABLES} | {
    f"{name}_{what}" for name in ACCURACIES + TUNED for what in ("error", "validation")
}


def write_data(folder, *, labels=True):
    """Noisy pictures (3, 8, 8), red, green or blue according to their class."""
    random = np.random.default_rng(0)
    for split, rows in ROWS.items():
        label = np.arange(rows) % 3
        image = random.integers(0, 120, (rows, 3, 8, 8), dtype=np.uint8)
        image[np.arange(rows), label] += 80
        (folder / split).mkdir(parents=True)
        np.save(folder / split / "image.npy", image)
        if labels:
            np.save(folder / split / "label.npy", label)
            np.save(folder / split / "shade.npy", (image.mean((1, 2, 3)) > 85).astype(np.int64))
    splits = {split: {"rows": rows} for split, rows in ROWS.items()}
    classes = ["red", "green", "blue"] if labels else []
    write_json(
        folder / "manifest.json",
        {"data": "made", "classes": classes, "facts": {"size": 8}, "splits": splits, "hash": "da1a" * 9},
    )


def write_models(folder, *, status="ok"):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if status == "ok":
        save_file(ssl_methods.build_encoder(ENCODER, {}).state_dict(), folder / "encoder.safetensors")
    write_json(folder / "status.json", {"status": status, "step": None, "cause": None})


@pytest.fixture
def models(tmp_path):
    write_models(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def data(tmp_path):
    write_data(tmp_path / "data")
    return tmp_path / "data"


def run(models, data, protocol=PROTOCOL, **given):
    return evaluate.evaluate(models, data, "image", ENCODER, protocol, **given)


def relabel(data, split, change):
    label = np.load(data / split / "label.npy")
    np.save(data / split / "label.npy", change(label))


def test_scores_and_details_are_as_the_report_reads_them(models, data):
    scores, details = run(models, data)
    assert (set(scores), set(details)) == (SCORES, DETAILS)
    assert scores["status"] == details["status"] == "ok"
    assert scores["features"] == 8
    assert scores["linear"] > 80
    assert scores["knn"] > 80
    assert 1.5 < scores["effective_rank"] <= 8
    assert 0.01 < scores["spread"] < 1
    assert details["linear_error"] == pytest.approx((scores["linear"] * (100 - scores["linear"]) / 45) ** 0.5)
    choices = {"strength", "depth", "depth_strength", "k", "temperature", "transfer_strength", "epoch"}
    assert details["choices"].keys() == choices
    assert len(details["depths"]) == 2
    assert [point["strength"] for point in details["probe"]] == [1e-2, 1e-4]
    assert details["linear_validation"] == max(point["validation"] for point in details["probe"])
    assert details["data"] == {"classes": ["red", "green", "blue"], "rows": ROWS}


def test_everything_is_measured_where_the_protocol_asks_for_it(models, data):
    scores, details = run(models, data, WHOLE)
    assert None not in scores.values()
    assert scores["finetune"] > 60
    assert details["finetune_validation"] == max(point["validation"] for point in details["finetune_curve"])
    assert [point["epoch"] for point in details["finetune_curve"]] == [1, 2, 3]
    assert list(details["low_label"]) == ["1 %", "20 %", "1 per class"]
    assert scores["low_label"] == details["low_label"]["1 %"]["accuracy"]
    assert [budget["rows"] for budget in details["low_label"].values()] == [3, 18, 3]
    assert all(len(budget["draws"]) == 3 for budget in details["low_label"].values())
    assert details["transfer_details"] == {"label": "shade", "classes": 2}
    for name in (*TUNED, "low_label"):
        assert details[f"{name}_error"] == pytest.approx((scores[name] * (100 - scores[name]) / 45) ** 0.5)
    assert details["clustering"].keys() == {"nmi", "ari", "accuracy"}
    assert sum(map(sum, details["confusion"])) == 45
    right = sum(details["confusion"][i][i] for i in range(3))
    assert scores["linear"] == pytest.approx(100 * right / 45)
    assert [sum(row) for row in details["confusion"]] == [15, 15, 15]
    assert [len(details["map"][axis]) for axis in ("x", "y", "label")] == [45, 45, 45]
    assert details["symptom"] is None


def test_choices_are_functions_of_train_and_validation(models, data):
    """Neither other labels nor other pictures in test change one."""
    scores, details = run(models, data, WHOLE)
    relabel(data, "test", lambda label: (label + 1) % 3)
    np.save(data / "test/shade.npy", 1 - np.load(data / "test/shade.npy"))
    scrambled, others = run(models, data, WHOLE)
    assert scrambled["linear"] < 50 < scores["linear"]
    assert scrambled["finetune"] < 50 < scores["finetune"]
    assert scrambled["transfer"] == pytest.approx(100 - scores["transfer"])
    chosen = ["choices", "probe", "depths", "finetune_curve", *(key for key in DETAILS if key.endswith("_validation"))]
    assert [others[key] for key in chosen] == [details[key] for key in chosen]
    assert all(scrambled[key] == scores[key] for key in HEALTH)
    np.save(data / "test/image.npy", 255 - np.load(data / "test/image.npy"))
    _, others = run(models, data, WHOLE)
    assert [others[key] for key in chosen] == [details[key] for key in chosen]


def test_no_column_of_test_is_opened_before_everything_is_chosen(models, data, monkeypatch):
    events = []
    opened, choose = np.load, evaluate.choose
    monkeypatch.setattr(np, "load", lambda path, *rest, **kind: events.append(path) or opened(path, *rest, **kind))
    monkeypatch.setattr(evaluate, "choose", lambda *parts: (choose(*parts), events.append("chosen"))[0])
    run(models, data, WHOLE)
    before, after = events[: events.index("chosen")], events[events.index("chosen") + 1 :]
    assert {path.parent.name for path in before} == {"train", "validation"}
    assert "test" in {path.parent.name for path in after}


def test_the_draws_of_few_labels_are_those_of_train_and_choose_on_validation(models, data):
    _, details = run(models, data, WHOLE)
    encoder = frozen.load(models / "encoder.safetensors", ENCODER, {})
    subject = frozen.Subject(encoder, "image", data, WHOLE)
    train, validation, test = (frozen.see(subject, split) for split in ROWS)
    kind = {"shares": [0.2], "per_class": [], "draws": 3, "strengths": [1e-2, 1.0], "classes": 3}
    chosen = low_label.choose(train.last, validation.last, **kind)
    assert low_label.read(chosen, test.last)["20 %"] == details["low_label"]["20 %"]


def test_transfer_is_not_measured_where_the_data_lacks_the_column(models, data):
    for split in ROWS:
        (data / split / "shade.npy").unlink()
    scores, details = run(models, data, WHOLE)
    assert (scores["transfer"], details["transfer_error"], details["transfer_details"]) == (None, None, {})
    assert details["choices"]["transfer_strength"] is None


def test_a_class_of_transfer_that_test_alone_has_is_missed(models, data):
    np.save(data / "test/shade.npy", np.full(45, 7))
    scores, details = run(models, data, WHOLE)
    assert scores["transfer"] == 0
    assert details["transfer_details"]["classes"] == 3


def test_the_same_concept_by_another_vendor_is_looked_for(models, data):
    """Rows i and i + 15 of the first 30 show one concept by two vendors; the last 15 have no partner and do not ask."""
    random = np.random.default_rng(1)
    image = random.integers(0, 255, (45, 3, 8, 8), dtype=np.uint8)
    image[15:30] = image[:15]
    np.save(data / "test/image.npy", image)
    concept = np.concatenate([np.arange(15), np.arange(30)])
    vendor = np.arange(45) // 15
    vendor[30:] = 0
    for split in ROWS:
        rows = ROWS[split]
        np.save(data / split / "concept.npy", concept if split == "test" else np.arange(rows))
        np.save(data / split / "vendor.npy", vendor if split == "test" else np.zeros(rows, np.int64))
    concept[30:] = np.arange(100, 115)
    np.save(data / "test/concept.npy", concept)
    _, details = run(models, data)
    found = details["retrieval"]["same concept, another vendor"]
    assert (found["r1"], found["map"], found["median_rank"]) == (100, 100, 1)
    assert found["chance_r1"] == pytest.approx(100 / 44)
    np.save(data / "test/vendor.npy", np.zeros(45, np.int64))
    _, details = run(models, data)
    assert details["retrieval"] == {}


def test_neighbours_show_only_what_may_be_shown(models, data):
    """The pictures that may be shown are white, all others black: no black picture is on the sheet."""
    show = {"train": list(range(0, 90, 3)), "test": [1, 5, 8], "validation": []}
    for split in ("train", "test"):
        image = np.zeros((ROWS[split], 3, 8, 8), np.uint8)
        image[show[split]] = 255
        np.save(data / split / "image.npy", image)
    assert sheet(run(models, data)[1]["neighbours"]).min() < 10
    manifest = json.loads((data / "manifest.json").read_text())
    write_json(data / "manifest.json", manifest | {"show": show})
    found = run(models, data)[1]["neighbours"]
    assert found["queries"] == 3
    assert sheet(found).shape == (3 * 10, 8 * 10, 3)
    assert sheet(found).min() > 245
    write_json(data / "manifest.json", manifest | {"show": show | {"test": []}})
    assert run(models, data)[1]["neighbours"] is None


def sheet(found):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found["webp"]))))


def test_neighbours_are_the_nearest_of_train_for_the_frozen_encoder(models, data):
    """Each query of test lies in train too, so that it is its own first neighbour."""
    random = np.random.default_rng(2)
    image = random.integers(0, 255, (90, 3, 1, 1), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    np.save(data / "train/image.npy", image)
    np.save(data / "test/image.npy", image[:45])
    lines = sheet(run(models, data)[1]["neighbours"]).astype(int)
    cells = lines.reshape(6, 10, 8, 10, 3).swapaxes(1, 2)[:, :, 3:7, 3:7].mean((2, 3))  # (6, 8, 3)
    assert np.abs(cells[:, 0] - cells[:, 1]).max() < 12  # WebP is lossy
    assert np.abs(cells[:, 0] - cells[:, 7]).max() > 12


def test_features_are_those_of_the_frozen_encoder_whatever_the_batch(models, data):
    network = frozen.load(models / "encoder.safetensors", ENCODER, {}).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    subjects = [
        frozen.Subject(network, "image", data, PROTOCOL.model_copy(update={"batch_size": size})) for size in (7, 1000)
    ]
    towers, others = (frozen.embed(subject, "test") for subject in subjects)
    assert towers.keys() == {"image"}
    shapes = {name: (depth.dtype, depth.shape) for name, depth in towers["image"].items()}
    assert shapes == {"stage 1": (torch.float32, (45, 4)), "stage 2": (torch.float32, (45, 8))}
    torch.testing.assert_close(towers["image"], others["image"])
    pictures = torch.from_numpy(np.load(data / "test/image.npy")) / 255
    torch.testing.assert_close(towers["image"]["stage 2"], network.eval()(pictures).detach())
    assert frozen.see(subjects[0], "test").labels.tolist() == [row % 3 for row in range(45)]
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())


def test_fine_tuning_leaves_the_frozen_encoder_as_it_was(models, data):
    expected, _ = run(models, data)
    scores, _ = run(models, data, WHOLE)
    assert all(scores[key] == expected[key] for key in (*ACCURACIES, *HEALTH))


def test_validation_chooses_the_depth_and_test_is_read_there(data):
    """Classes are plain to see in the middle; the deepest features, and those of the test split alone, tell nothing."""
    torch.manual_seed(0)
    labels = {split: torch.arange(rows) % 3 for split, rows in ROWS.items()}
    noise = {split: torch.randn(rows, 4) for split, rows in ROWS.items()}
    plain = {split: F.one_hot(labels[split], 3) + 0.1 * torch.randn(rows, 3) for split, rows in ROWS.items()}
    last = {**noise, "test": plain["test"].repeat(1, 2)[:, :4]}
    subject = frozen.Subject(torch.nn.Identity(), "image", data, PROTOCOL)

    def probed(depths):
        splits = [frozen.Split(s, torch.arange(rows), labels[s], depths(s)) for s, rows in ROWS.items()]
        chosen = evaluate.choose(subject, *splits[:2])
        return evaluate.read_probes(subject, chosen, *splits)

    found = probed(lambda s: {"first": noise[s], "middle": plain[s], "last": last[s]})
    assert found["choices"]["depth"] == "middle"
    assert found["linear_depth"] == found["linear_depth_validation"] == found["depths"]["middle"] == 100
    assert found["depths"]["last"] == found["linear_validation"] < 60
    same = probed(lambda s: {"first": plain[s], "last": plain[s]})
    assert same["choices"]["depth"] == "last"  # the deepest among equals
    assert same["linear_depth"] == same["linear"]


def test_rows_without_a_label_are_passed_over(models, data):
    scores, _ = run(models, data, WHOLE)
    for split in ROWS:
        column = np.load(data / split / "image.npy")
        np.save(data / split / "image.npy", np.concatenate([column, column[:9]]))
        relabel(data, split, lambda label: np.concatenate([label, np.full(9, -1)]))
        np.save(data / split / "shade.npy", np.concatenate([np.load(data / split / "shade.npy"), np.zeros(9, int)]))
    more, _ = run(models, data, WHOLE)
    assert more == scores


def test_a_split_without_any_label_is_an_error(models, data):
    relabel(data, "validation", lambda label: np.full_like(label, -1))
    with pytest.raises(InputError, match="validation split has no labelled row"):
        run(models, data)


def test_unlabelled_data_has_what_needs_no_label_only(models, data):
    expected, _ = run(models, data)
    shutil.rmtree(data)
    write_data(data, labels=False)
    scores, details = run(models, data, WHOLE)
    health = {key: expected[key] for key in HEALTH}
    assert scores == dict.fromkeys(SCORES) | {"status": "unlabelled"} | health
    assert details["neighbours"]["queries"] == 6
    assert details["choices"] is None
    assert details["probe"] == []


def test_a_diverged_run_is_not_evaluated(models, data):
    shutil.rmtree(models)
    write_models(models, status="diverged")
    scores, details = run(models, data)
    assert scores == {"status": "diverged", **dict.fromkeys(SCORES - {"status"})}
    assert set(details) == DETAILS
    assert details["status"] == "diverged"


def tamper(models, change):
    weights = load_file(models / "encoder.safetensors")
    change(weights)
    save_file(weights, models / "encoder.safetensors")


def test_features_that_are_not_finite_count_as_diverged(models, data):
    tamper(models, lambda weights: weights["stem.weight"].fill_(float("nan")))
    scores, _ = run(models, data)
    assert scores == {"status": "diverged", **dict.fromkeys(SCORES - {"status"})}
    network = frozen.load(models / "encoder.safetensors", ENCODER, {})
    assert evaluate.validation_score(network, "image", data, PROTOCOL) is None


def test_a_run_without_a_map_is_measured_alike(models, data):
    (scores, details), (plain, less) = run(models, data), run(models, data, mapped=False)
    assert (less["map"], plain) == ({}, scores)
    assert {**less, "map": details["map"]} == details
    assert plan.evaluate_of(settings.read(), "image", "simclr")["mapped"] == 0  # the first seed


def test_constant_features_are_called_collapsed_and_still_measured(models, data):
    tamper(models, lambda weights: weights["stem.weight"].zero_())
    tamper(models, lambda weights: weights["norm.bias"].fill_(1))
    scores, details = run(models, data, WHOLE)
    assert scores["status"] == "collapsed"
    assert details["symptom"] == "effective rank 1 is below 1.5 and spread 0 is below 0.01"
    assert scores["spread"] == pytest.approx(0, abs=1e-6)
    assert scores["linear"] == pytest.approx(100 / 3)
    assert (scores["dead"], scores["alignment"], scores["uniformity"]) == pytest.approx((100, 0, 0), abs=1e-6)
    assert scores["lidar"] == pytest.approx(1, abs=1e-3)
    assert details["map"] == {}


@pytest.mark.parametrize(
    ("threshold", "symptom"),
    [
        ({"collapsed_spread": 1.1}, r"^spread 0\.\d+ is below 1\.1$"),
        ({"collapsed_rank": 8.1}, r"^effective rank \d\.\d is below 8\.1$"),
    ],
)
def test_either_threshold_of_the_protocol_decides_what_is_collapsed(models, data, threshold, symptom):
    scores, details = run(models, data, PROTOCOL.model_copy(update=threshold))
    assert scores["status"] == "collapsed"
    assert re.search(symptom, details["symptom"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("stem.weight"), r"stem\.weight is missing"),
        (lambda weights: weights.update(spare=torch.ones(2)), "spare is unexpected"),
        (lambda weights: weights.update({"norm.bias": torch.ones(5)}), r"norm\.bias has shape \(5,\), not \(4,\)"),
        (lambda weights: weights.clear(), r"is missing \(and \d+ more faults\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(models, data, change, message):
    tamper(models, change)
    with pytest.raises(InputError, match=message):
        run(models, data)


def test_missing_and_damaged_files_are_named(models, data, tmp_path):
    with pytest.raises(InputError, match="nowhere holds no pretrained encoder"):
        run(tmp_path / "nowhere", data)
    with pytest.raises(InputError, match="nowhere holds no prepared data"):
        run(models, tmp_path / "nowhere")
    (models / "encoder.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"encoder\.safetensors cannot be read"):
        run(models, data)


def test_a_sweep_is_scored_on_validation_with_test_closed(models, data):
    _, details = run(models, data)
    network = frozen.load(models / "encoder.safetensors", ENCODER, {})
    shutil.rmtree(data / "test")
    assert evaluate.validation_score(network, "image", data, PROTOCOL) == details["linear_validation"]


def test_a_sweep_needs_labels(models, tmp_path):
    write_data(tmp_path / "unlabelled", labels=False)
    network = frozen.load(models / "encoder.safetensors", ENCODER, {})
    with pytest.raises(InputError, match=r"made has none; empty benchmark\.image\.sweeps"):
        evaluate.validation_score(network, "image", tmp_path / "unlabelled", PROTOCOL)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with params.yaml, plan.json, data and weights, which is the current one."""
    monkeypatch.chdir(tmp_path)
    block = {key: value for key, value in ENCODER.items() if key != "name"}
    training = {"encoder": "tiny", "epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 0.001}
    write_json(tmp_path / "params.yaml", {
        "seeds": [0],
        "benchmark": {"image": {"data": "cifar10", "training": "quick", "methods": ["untrained"]}},
        "datasets": {"cifar10": {}},
        "training": {"quick": training},
        "encoders": {"tiny": block},
        "methods": {"untrained": {}},
        "evaluation": WHOLE.model_dump(mode="json"),
    })  # fmt: skip
    planned = plan.settings_of(settings.read())
    planned["evaluate"]["image"]["untrained"]["code"] = "c0dec0dec0de"
    write_json(plan.PLAN, planned)
    write_data(tmp_path / "data/image")
    write_models(tmp_path / "models/image/untrained/1")
    return tmp_path


def test_the_command_writes_the_same_bytes_twice_apart_from_the_seconds(repository, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", "image", "untrained", "--seed", "1"])
    folder = repository / "metrics/image/untrained/1"
    written = []
    for _ in range(2):
        evaluate.main()
        details = json.loads((folder / "evaluate.json").read_text())
        assert details.pop("seconds") > 0
        began, ended = details.pop("clock")
        assert began <= ended <= time.time() + 1
        written.append(((folder / "scores.json").read_bytes(), list(details.items())))
        assert sorted(path.name for path in folder.iterdir()) == ["evaluate.json", "scores.json"]
        shutil.rmtree(folder)
    assert written[0] == written[1]
    assert set(details) == DETAILS | {"provenance"}
    assert details["provenance"]["code"] == "c0dec0dec0de"
    assert details["provenance"]["precision"] == "float32"
    assert capsys.readouterr().out.startswith("untrained 1: ok: linear ")


def test_importing_the_stage_loads_no_method_and_nothing_heavy_but_torch():
    code = "import sys, stages.evaluate; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    families = set(ssl_methods.families().values())
    assert not [name for name in loaded if name.startswith("ssl_methods.") and name.split(".")[1] in families]
    assert not {"sklearn", "pandas", "mlflow", "optuna", "torchvision", "matplotlib", "scipy"} & set(loaded)
