"""Evaluation from files to files, on a small made-up data set with a real encoder."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import ssl_methods
from stages import evaluate, plan, settings
from stages.files import write_json
from stages.settings import Evaluation, InputError

ROWS = {"train": 90, "validation": 45, "test": 45}
ENCODER = {"name": "tiny", "architecture": "ResNet", "width": 4, "blocks": [1, 1], "stride": 2}
PROTOCOL = Evaluation(strengths=[1e-4, 1e-2], neighbours=[1, 5, 1000], batch_size=32)
ACCURACIES = ("linear", "linear_depth", "knn")
SCORES = {"status", *ACCURACIES, "effective_rank", "spread", "features"}
DETAILS = {"status", "choices", "depths", "probe", "retrieval", "zero_shot", "data"} | {
    f"{name}_{what}" for name in ACCURACIES for what in ("error", "validation")
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


def run(models, data, protocol=PROTOCOL):
    return evaluate.evaluate(models, data, "image", ENCODER, protocol)


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
    assert details["choices"].keys() == {"strength", "depth", "depth_strength", "k", "temperature"}
    assert len(details["depths"]) == 2
    assert [point["strength"] for point in details["probe"]] == [1e-2, 1e-4]
    assert details["linear_validation"] == max(point["validation"] for point in details["probe"])
    assert details["data"] == {"classes": ["red", "green", "blue"], "rows": ROWS}


def test_choices_do_not_depend_on_the_labels_of_test(models, data):
    scores, details = run(models, data)
    relabel(data, "test", lambda label: (label + 1) % 3)
    scrambled, others = run(models, data)
    assert scrambled["linear"] < 50 < scores["linear"]
    assert [others[key] for key in ("choices", "probe", "knn_validation")] == [
        details[key] for key in ("choices", "probe", "knn_validation")
    ]


def test_features_are_those_of_the_frozen_encoder_whatever_the_batch(models, data):
    network = evaluate.load(models / "encoder.safetensors", ENCODER, {}).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    kind = {"device": torch.device("cpu")}
    towers, labels = evaluate.embed(network, "image", data, "test", batch_size=7, **kind)
    others, _ = evaluate.embed(network, "image", data, "test", batch_size=1000, **kind)
    assert towers.keys() == {"image"}
    shapes = {name: (depth.dtype, depth.shape) for name, depth in towers["image"].items()}
    assert shapes == {"stage 1": (torch.float32, (45, 4)), "stage 2": (torch.float32, (45, 8))}
    torch.testing.assert_close(towers["image"], others["image"])
    pictures = torch.from_numpy(np.load(data / "test/image.npy")) / 255
    torch.testing.assert_close(towers["image"]["stage 2"], network.eval()(pictures).detach())
    assert labels.tolist() == [row % 3 for row in range(45)]
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())


def test_validation_chooses_the_depth_and_test_is_read_there():
    """Classes are plain to see in the middle; the deepest features, and those of the test split alone, tell nothing."""
    torch.manual_seed(0)
    labels = {split: torch.arange(rows) % 3 for split, rows in ROWS.items()}
    noise = {split: torch.randn(rows, 4) for split, rows in ROWS.items()}
    plain = {split: F.one_hot(labels[split], 3) + 0.1 * torch.randn(rows, 3) for split, rows in ROWS.items()}
    last = {**noise, "test": plain["test"].repeat(1, 2)[:, :4]}
    features = {s: {"first": noise[s], "middle": plain[s], "last": last[s]} for s in ROWS}
    found = evaluate.measure(features, labels, PROTOCOL, 3)
    assert found["choices"]["depth"] == "middle"
    assert found["linear_depth"] == found["linear_depth_validation"] == found["depths"]["middle"] == 100
    assert found["depths"]["last"] == found["linear_validation"] < 60
    same = evaluate.measure({s: {"first": plain[s], "last": plain[s]} for s in ROWS}, labels, PROTOCOL, 3)
    assert same["choices"]["depth"] == "last"  # the deepest among equals
    assert same["linear_depth"] == same["linear"]


def test_rows_without_a_label_are_passed_over(models, data):
    scores, _ = run(models, data)
    for split in ROWS:
        column = np.load(data / split / "image.npy")
        np.save(data / split / "image.npy", np.concatenate([column, column[:9]]))
        relabel(data, split, lambda label: np.concatenate([label, np.full(9, -1)]))
    more, _ = run(models, data)
    assert more == scores


def test_a_split_without_any_label_is_an_error(models, data):
    relabel(data, "validation", lambda label: np.full_like(label, -1))
    with pytest.raises(InputError, match="validation split has no labelled row"):
        run(models, data)


def test_unlabelled_data_has_rank_and_spread_only(models, data):
    expected, _ = run(models, data)
    shutil.rmtree(data)
    write_data(data, labels=False)
    scores, details = run(models, data)
    health = {key: expected[key] for key in ("effective_rank", "spread", "features")}
    assert scores == {"status": "unlabelled", **dict.fromkeys(ACCURACIES), **health}
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
    network = evaluate.load(models / "encoder.safetensors", ENCODER, {})
    assert evaluate.validation_score(network, "image", data, PROTOCOL) is None


def test_constant_features_are_called_collapsed_and_still_measured(models, data):
    tamper(models, lambda weights: weights["stem.weight"].zero_())
    tamper(models, lambda weights: weights["norm.bias"].fill_(1))
    scores, _ = run(models, data)
    assert scores["status"] == "collapsed"
    assert scores["spread"] == pytest.approx(0, abs=1e-6)
    assert scores["linear"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("threshold", [{"collapsed_spread": 1.1}, {"collapsed_rank": 8.1}])
def test_either_threshold_of_the_protocol_decides_what_is_collapsed(models, data, threshold):
    scores, _ = run(models, data, PROTOCOL.model_copy(update=threshold))
    assert scores["status"] == "collapsed"


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
    network = evaluate.load(models / "encoder.safetensors", ENCODER, {})
    shutil.rmtree(data / "test")
    assert evaluate.validation_score(network, "image", data, PROTOCOL) == details["linear_validation"]


def test_a_sweep_needs_labels(models, tmp_path):
    write_data(tmp_path / "unlabelled", labels=False)
    network = evaluate.load(models / "encoder.safetensors", ENCODER, {})
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
        "evaluation": {"strengths": [0.01], "neighbours": [5]},
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
