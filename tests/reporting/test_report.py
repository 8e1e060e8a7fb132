"""The report: tables, sentences and pages of made-up results in which all that can happen has."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from stages import report
from stages.common.settings import InputError
from stages.reporting import statistics
from stages.reporting.paper import escape
from stages.reporting.quantities import COST, HEALTH, MEASURES
from stages.reporting.results import first_clause, read
from stages.reporting.summary import minutes, summary
from stages.reporting.table import BEST, TIED, board

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert('1')</script>|`$x$"
SEEDS = [0, 1, 2]
RESNET = {"name": "small_resnet", "architecture": "ResNet", "width": 16}
VIT = {"name": "vit", "architecture": "ViT", "width": 128}
# entry: method, family, encoder, linear accuracy, seconds
TABLE = {
    "untrained": ("untrained", "baselines", RESNET, 56.0, 0.0),
    "pca": ("pca", "baselines", RESNET, 57.2, 1.5),
    "rotation": ("rotation", "pretext", RESNET, 59.0, 60.0),
    "autoencoder": ("autoencoder", "generative", RESNET, 57.9, 75.0),
    "simclr": ("simclr", "contrastive", RESNET, 64.0, 110.0),
    "moco": ("moco", "contrastive", RESNET, 63.9, 120.0),
    "byol": ("byol", "distillation", RESNET, 62.5, 118.0),
    "simsiam": ("simsiam", "distillation", RESNET, 20.0, 98.0),
    HOSTILE: ("swav", "clustering", RESNET, 60.5, 105.0),
    "barlow_twins": ("barlow_twins", "decorrelation", RESNET, 61.0, 112.0),
    "untrained_vit": ("untrained", "baselines", VIT, 50.0, 0.0),
    "mae": ("mae", "masked", VIT, 58.0, 140.0),
    "supervised": ("supervised", "baselines", RESNET, 71.0, 55.0),
}
DIVERGED, COLLAPSED, MISSING = ("byol", 1), ("simsiam", 2), ("rotation", 2)
RANKED = ["simclr", "moco", "autoencoder", "barlow_twins", HOSTILE, "mae"]


@pytest.fixture
def root(tmp_path):
    write_results(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a finished report."""
    folder = tmp_path_factory.mktemp("made")
    write_results(folder)
    report.main(folder)
    return folder


@pytest.fixture(scope="module")
def files(made):
    return written(made)


@pytest.fixture(scope="module")
def table(made):
    return table_of(made)


def written(root):
    return {path.name: path.read_text() for path in (root / "reports").glob("*.*")}


def measured(root, stage):
    """The files of all runs. (A hostile name has a slash.)"""
    return sorted(path for path in (root / "metrics").rglob("*.json") if path.parent.name == stage)


def table_of(root):
    results = read(root)
    return board(results.modalities[0], results.seeds)


def write_results(root, seeds=SEEDS, entries=tuple(TABLE)):
    """What the report reads of a repository; one run each has diverged, has collapsed, and is missing."""
    training = {"encoder": "small_resnet", "epochs": 9, "batch_size": 256, "optimizer": "adamw", "lr": 0.002}
    benchmark = {"data": "emoji", "training": "laptop", "methods": list(entries), "sweeps": []}
    benchmark["sweeps"] = [name for name in ("simclr", "moco") if name in entries]
    sweep = {"trials": 5, "epochs": 3, "space": {"temperature": {"low": 0.05, "high": 1.0}}}
    params = {
        "seeds": seeds,
        "benchmark": {"image": benchmark},
        "datasets": {"emoji": {"size": 32}},
        "training": {"laptop": training},
        "encoders": {"small_resnet": {"architecture": "ResNet"}, "vit": {"architecture": "ViT"}},
        "methods": {name: {"method": TABLE[name][0]} for name in entries},
        "evaluation": {"strengths": [0.01], "neighbours": [20]},
        "sweeps": dict.fromkeys(benchmark["sweeps"], sweep),
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    planned = {
        name: {
            "method": method,
            "family": family,
            "encoder": encoder,
            "hyper": {},
            "training": training,
            "code": "ab12",
        }
        for name, (method, family, encoder, _, _) in TABLE.items()
    }
    write_json(root / "plan.json", {
        "prepare": {"image": {"data": "emoji", "settings": {"size": 32}, "code": "ab12"}},
        "pretrain": {"image": planned},
    })  # fmt: skip
    for method, family, *_ in TABLE.values():
        columns = ("image", "label") if method == "supervised" else ("image",)
        source = (
            f'"""{method.upper()}: what it does; and more.\n\nNobody. 2020. https://arxiv.org/abs/2002.05709.\n"""\n'
        )
        path = root / f"ssl_methods/{family}/{method}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{source}\n\nclass Made:\n    columns = {columns!r}\n")
    for row, name in enumerate(TABLE):
        for seed in seeds:
            if name in entries and (name, seed) != MISSING:
                write_run(root / "metrics/image" / name, name, seed, row)
    write_sweep(root / "reports/sweeps/image/simclr")
    (root / "README.md").write_text("# Title\n\n<!-- results image -->\nold\n<!-- /results image -->\n\nThe end.\n")


def write_run(folder, name, seed, row):
    _, _, _, accuracy, seconds = TABLE[name]
    random = np.random.default_rng([row, seed])
    shared = 0.8 * np.random.default_rng(seed).standard_normal()  # what the seed does to all entries alike
    diverged, collapsed = (name, seed) == DIVERGED, (name, seed) == COLLAPSED
    steps = 0 if seconds < 2 else 60 if diverged else 100
    losses = (
        0.6
        + 4 * np.exp(-np.arange(1, steps + 1) / 30)
        + 0.3 * random.standard_normal()
        + 0.05 * random.standard_normal(steps)
    )
    provenance = {
        "config": f"c0nf{row:08d}",
        "code": f"c0de{row:08d}",
        "data": "da1a00000000",
        "device": "cpu: 2 threads",
    }
    provenance |= {"precision": "bfloat16", "versions": {"python": "3.11.2", "torch": "2.14.1"}}
    status = "diverged" if diverged else "collapsed" if collapsed else "ok"
    write_json(folder / f"pretrain/{seed}.json", {
        "key": f"{row:06x}{seed:06x}",
        "held_out": {"loss": 1.5, "nats": 2.0 + seed, "unigram": 7.0, "next": 0.75} if name == "mae" else {},
        "said": ["an <em>odd</em> sentence"] if name == "mae" else [],
        "panel": None if name != "autoencoder" else {"shows": ["output", "truth"], "webp": "UklGRg=="},
        "status": "diverged" if diverged else "ok", "step": 61 if diverged else None,
        "cause": "the loss is nan" if diverged else None, "loss": losses[-1] if steps else None,
        "seconds": seconds * (1 + 0.02 * seed), "samples": 768 * steps,
        "samples_per_second": 768 * steps / seconds if steps else None,
        "encoder_parameters": 310_000, "method_parameters": 500_000, "peak_memory_mb": 812.5, "provenance": provenance,
        "curve": [{"step": 3 * i, "samples": 768 * i, "loss": x} for i, x in enumerate(losses.tolist(), 1)],
    })  # fmt: skip
    linear = 11.5 if collapsed else round(accuracy + shared + 0.3 * random.standard_normal(), 2)
    scores = {"linear": linear, "linear_depth": linear + seed % 2, "knn": linear - 3.5}
    scores |= {"effective_rank": 1.2 if collapsed else 40 + row, "features": 192}
    scores |= {"finetune": linear / 2 + 40 + 0.1 * random.standard_normal(), "low_label": linear - 20, "transfer": None}
    scores |= {"lidar": linear / 2, "alignment": linear / 100, "uniformity": -2 - 0.1 * row, "dead": 100 - linear}
    errors = {"linear_error": 1.1, "knn_error": 1.15, "linear_validation": linear + 0.5, "knn_validation": linear - 3}
    heights = {"stage 1": linear - 9, "stage 2": linear, "stage 3": linear - seed % 2}
    chosen = f"stage {3 - seed % 2}"
    if name == "pca":
        heights, chosen = {"features": linear}, "features"
    errors |= {"depths": heights, "choices": {"depth": chosen}}
    errors |= {"clustering": {"nmi": linear / 3, "ari": 5.0, "accuracy": 20.0}, "finetune_error": 0.9}
    errors |= {"low_label_details": {"1 %": {"accuracy": linear - 20, "draws": [linear - 21, linear - 19], "rows": 85}}}
    errors |= {"symptom": "effective rank 1.2 is below 1.5" if collapsed else None}
    if name in ("pca", "mae"):
        errors["retrieval"] = {"sound to film": {"r1": row + seed, "chance_r1": 1.25}}
        errors["zero_shot"] = {"accuracy": 30.0 + row + seed, "majority": 19.25}
    scores = dict.fromkeys(scores) if diverged else scores
    data = {"classes": list("abcdefghi"), "rows": {"train": 8464, "validation": 1814, "test": 1814}}
    found = {"status": status, **scores, "provenance": provenance, "data": data, "seconds": 7.0}
    write_json(folder / f"evaluate/{seed}.json", found | (errors if not diverged else {}))


def write_sweep(folder):
    folder.mkdir(parents=True)
    (folder / "trials.csv").write_text(
        "number,state,value,temperature,seconds\n0,COMPLETE,60.0,0.5,40\n1,COMPLETE,61.5,0.2,41\n"
    )
    (folder / "best.yaml").write_text("simclr:\n  temperature: 0.2\n")
    (folder / "importance.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 3"><path d="M0 0h9v3z"/></svg>'
    )
    write_json(folder / "study.json", {"best_value": 61.5, "default_value": 60.0, "trials": 2})


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def unlabel(root):
    """As if the data had no labels."""
    for path in measured(root, "evaluate"):
        found = json.loads(path.read_text()) | dict.fromkeys(MEASURES)
        status = "unlabelled" if found["status"] == "ok" else found["status"]
        write_json(path, found | {"low_label_details": {}, "clustering": {}, "status": status})


# The table


def test_ranks_only_self_supervised_entries_that_finished(table):
    assert table.leaders == dict.fromkeys(("linear", "linear_depth", "knn", "finetune", "low_label"), "simclr")
    compared = {row.entry.name for row in table.rows if row.cells["linear"].comparison}
    assert compared == {"moco", "autoencoder", "barlow_twins", HOSTILE, "mae"}
    standings = {row.entry.name: row.cells["linear"].standing for row in table.rows}
    assert (standings["simclr"], standings["moco"], standings["mae"], standings["supervised"]) == (BEST, TIED, "", "")


def test_order(table):
    names = [row.entry.name for row in table.rows]
    assert names[:2] == ["simclr", "moco"]
    assert names[-5:] == ["simsiam", "supervised", "pca", "untrained", "untrained_vit"]


def test_gain_is_over_the_same_encoder(table):
    mae, untrained = table.row("mae"), table.row("untrained_vit")
    assert mae.gain.mean == pytest.approx(mae.cells["linear"].estimate.mean - untrained.cells["linear"].estimate.mean)
    assert untrained.gain is None


def test_gains_are_tested_of_the_ranked(table):
    """Against the untrained entry with the same network, all six that are ranked together."""
    floors = {name: table.row("untrained_vit" if name == "mae" else "untrained") for name in RANKED}
    floors = {name: row.entry.values("linear") for name, row in floors.items()}
    expected = statistics.against({name: table.row(name).entry.values("linear") for name in RANKED}, floors)
    for name, comparison in expected.items():
        gain = table.row(name).gain
        assert gain.p == pytest.approx(comparison.p)
        assert (gain.low, gain.high) == pytest.approx((comparison.difference.low, comparison.difference.high))
    assert {table.row(name).gain.p for name in ("byol", "simsiam", "supervised")} == {None}


def test_summary_says_who_is_better_than_untrained(root):
    (sentence,) = [said for said in summary(table_of(root)) if "their untrained encoder" in said]
    assert sentence.startswith("Of 6 methods beside their untrained encoder, all are shown to be better than it; ")
    for seed, (far, near) in enumerate([(30.0, 50.0), (30.1, 64.0), (30.2, 57.0)]):
        for name, linear in (("moco", far), ("autoencoder", near)):
            path = root / f"metrics/image/{name}/evaluate/{seed}.json"
            write_json(path, json.loads(path.read_text()) | {"linear": linear})
    table = table_of(root)
    median = np.median([table.row(name).gain.mean for name in RANKED])
    (sentence,) = [said for said in summary(table) if "their untrained encoder" in said]
    assert sentence == (
        f"Of 6 methods beside their untrained encoder, 4 (simclr, barlow_twins, {HOSTILE} and mae) are shown to be "
        f"better than it, moco to be worse; the median gain is {median:.1f} points."
    )


def test_one_method_alone_reads_well(tmp_path):
    write_results(tmp_path, entries=["untrained", "simclr"])
    said = summary(table_of(tmp_path))
    assert said[0].endswith("): no other is ranked.")
    assert said[1].startswith("First by linear probe, chosen depth: simclr (6")
    assert "tied" not in said[1]
    assert any(s.startswith("simclr is shown to be better than its untrained encoder; the gain is ") for s in said)


def test_two_methods_read_well(tmp_path):
    write_results(tmp_path, entries=["untrained", "simclr", "mae"])
    said = summary(table_of(tmp_path))
    assert said[0].endswith(", ahead of mae, the only other that is ranked.")


def test_finetuning_is_worth_what_it_adds_to_the_same_network_from_scratch(table):
    cell = table.row("simclr").cells["finetune"]
    scratch = table.row("untrained").entry.values("finetune")
    worth = np.mean([value - scratch[seed] for seed, value in table.row("simclr").entry.values("finetune").items()])
    assert cell.gain.mean == pytest.approx(worth)
    (said,) = [said for said in summary(table) if said.startswith("Fine-tuned with all labels, simclr is first with 7")]
    assert said.endswith(f", {worth:.1f} points above the same network from scratch.")


def test_what_fine_tunes_worse_than_from_scratch_is_named(tmp_path):
    write_results(tmp_path, entries=["untrained", "simclr", "moco"])
    for file in (tmp_path / "metrics/image/moco/evaluate").iterdir():
        scores = json.loads(file.read_text())
        write_json(file, scores | {"finetune": scores["finetune"] - 30})
    (said,) = [said for said in summary(table_of(tmp_path)) if said.startswith("Fine-tuned with all labels, simclr")]
    assert said.endswith("; shown to lose by their pretraining: moco.")


def test_places(table):
    places = {row.entry.name: row.cells["linear"].place for row in table.methods}
    assert {name for name, place in places.items() if place} == set(RANKED)
    assert (places["simclr"].rank, places["simclr"].low) == (1, 1)
    assert (places["autoencoder"].low, places["autoencoder"].high) != (1, 6)


def test_agreement_is_of_the_ranked_and_turned_so_that_better_goes_with_higher(table):
    rows = [table.row(name) for name in RANKED]
    for key, sign in (("effective_rank", 1), ("uniformity", -1)):
        found = table.agreement[key]
        x, y = ([row.mean(measure) for row in rows] for measure in (key, "linear"))
        assert found.n == len(rows) == 6
        assert found.spearman.value == pytest.approx(sign * stats.spearmanr(x, y).statistic)
        assert found.kendall.value == pytest.approx(sign * stats.kendalltau(x, y).statistic)
    values = {
        key: found.spearman.value for key, found in table.agreement.items() if key in ("lidar", "dead", "alignment")
    }
    assert values == pytest.approx({"lidar": 1.0, "dead": 1.0, "alignment": -1.0})
    assert "transfer" not in table.agreement


def test_surprises(root):
    said = summary(table_of(root))
    assert (
        "Methods are ordered the wrong way round by alignment (Spearman \N{MINUS SIGN}1.00, the reverse order)." in said
    )
    assert not [sentence for sentence in said if sentence.startswith(("Controls above", "Places by"))]
    for seed in SEEDS:
        for name, change in (("pca", {"knn": 99.5}), ("mae", {"knn": 90.0}), ("simclr", {"knn": 10.0 + seed})):
            path = root / f"metrics/image/{name}/evaluate/{seed}.json"
            write_json(path, json.loads(path.read_text()) | change)
    said = summary(table_of(root))
    assert "Controls above the leader by k-NN: pca (99.5 %)." in said
    (moved,) = [
        sentence for sentence in said if sentence.startswith("Places by k-NN and by linear probe differ by more")
    ]
    assert "simclr (6 instead of 1)" in moved


def test_pareto_front_is_what_nothing_beats_in_both(table):
    points = {name: (table.row(name).mean("seconds"), -table.row(name).mean("linear")) for name in RANKED}
    front = [
        name
        for name, (seconds, error) in sorted(points.items(), key=lambda item: item[1])
        if all(seconds < other or error < worse for n, (other, worse) in points.items() if n != name)
    ]
    assert table.pareto == front == ["autoencoder", HOSTILE, "simclr"]


def test_only_columns_that_were_measured_are_shown(table, files):
    assert list(table.columns) == ["linear", "linear_depth", "knn", "finetune", "low_label"]
    assert list(table.measured(HEALTH)) == list(HEALTH)
    assert list(table.measured(COST)) == [key for key in COST if key != "multiply_adds"]
    assert "| gain | status |" in files["README.md"]
    assert "transfer, %" not in files["README.md"]


def test_results_without_the_later_measures(root):
    """Those of an older run: nothing is made of what was not measured."""
    later = {"clustering", "low_label", "low_label_details", "symptom", "finetune", "transfer"}
    later |= {"lidar", "alignment", "uniformity", "dead"}
    for path in measured(root, "evaluate"):
        write_json(path, {key: value for key, value in json.loads(path.read_text()).items() if key not in later})
    report.main(root)
    table = table_of(root)
    assert list(table.columns) == ["linear", "linear_depth", "knn"]
    assert list(table.measured(HEALTH)) == ["effective_rank"]
    assert table.row("simsiam").status == "2 ok, 1 collapsed"
    assert "Fine-tuned" not in written(root)["README.md"].split("## How")[0]


def test_a_method_that_reads_labels_does_not_lead(root):
    source = root / "ssl_methods/contrastive/simclr.py"
    source.write_text(source.read_text().replace("('image',)", "('image', 'label')"))
    table = table_of(root)
    assert table.leaders["linear"] == "moco"
    assert [row.entry.name for row in table.labelled] == ["supervised", "simclr"]


def test_failures_are_rows(files, table):
    for name, status in {
        DIVERGED[0]: "2 ok, 1 diverged (step 61: the loss is nan)",
        COLLAPSED[0]: "2 ok, 1 collapsed (effective rank 1.2 is below 1.5)",
        MISSING[0]: "2 ok, 1 missing",
    }.items():
        assert table.row(name).status == status
        assert f">{status}</td>" in files["index.html"]
        assert re.search(rf"^\| \[{name}\].* \| {re.escape(status)} \|$", files["README.md"], re.MULTILINE)
    words = summary(table)
    assert "Diverged: byol (1 of 3 seeds; step 61: the loss is nan)." in words
    assert "Collapsed: simsiam (1 of 3 seeds; effective rank 1.2 is below 1.5)." in words
    assert "Missing: rotation (1 of 3 seeds)." in words


@pytest.mark.parametrize(("seconds", "words"), [(29, "0 minutes"), (61, "1 minute"), (7200, "120 minutes")])
def test_what_runs_took_is_told_in_minutes(seconds, words):
    assert minutes([{"seconds": seconds - 20}, {}, {"seconds": 20}]) == words


def test_summary_names_the_leader_and_the_budget(root, table):
    words, files = summary(table), [json.loads(f.read_text()) for f in measured(root, "pretrain")]
    trained = sum(found["seconds"] for found in files) / 60
    evaluated = 7 * len(measured(root, "evaluate")) / 60
    assert words[0].startswith("By linear probe, simclr leads with 6")
    assert words[0].endswith("; moco cannot be told apart from it.")
    assert words[-1] == (
        "Every self-supervised run saw 76,800 samples of emoji (9 classes, 8,464 rows in train, 1,814 rows in "
        "validation and 1,814 rows in test), under seeds 0, 1 and 2; "
        f"in all, {trained:.0f} CPU-minutes of pretraining and {evaluated:.0f} CPU-minutes of evaluation."
    )


def test_what_methods_drew_is_shown_once_each(files):
    page = files["index.html"]
    assert page.count("data:image/webp;base64,") == page.count("data:image/webp;base64,UklGRg==") == 1
    assert "autoencoder: output, truth" in page


def test_what_methods_wrote_is_shown_as_text(files):
    assert files["index.html"].count("<blockquote>an &lt;em&gt;odd&lt;/em&gt; sentence</blockquote>") == 1


def test_held_out_words_are_told_as_perplexities(table):
    said = " ".join(summary(table))
    assert "Perplexity of a held-out word (and from the words' frequencies alone): mae 20 (1,097)." in said
    assert "Told whether a held-out sentence follows another (chance: 50 %): mae 75.0 %." in said


def test_what_was_found_first_is_told_the_best_first(table):
    assert "Sound to film, found first (chance: 1.2 %): mae 12.0 % and pca 2.0 %." in summary(table)


def test_the_depth_that_validation_chose_is_named(table, files):
    assert table.row("simclr").cells["linear_depth"].note == "stage 3, stage 2 and stage 3"
    assert table.row("simsiam").cells["linear_depth"].note == "stage 3, stage 2 and stage 3"
    assert table.row("byol").cells["linear_depth"].note == "stage 3"  # its second seed diverged
    assert table.row("pca").cells["linear_depth"].note == ""  # nothing to choose
    assert all("stage 3, stage 2 and stage 3" in files[name] for name in ("index.html", "README.md"))


def test_a_run_can_diverge_in_evaluation(root):
    path = root / "metrics/image/moco/evaluate/0.json"
    kept = {key: json.loads(path.read_text())[key] for key in ("provenance", "data", "seconds")}
    write_json(path, {"status": "diverged", "linear": None, "knn": None, **kept})
    assert table_of(root).row("moco").status == "1 diverged (features are not finite), 2 ok"


def test_seconds_are_those_of_pretraining(table):
    assert table.row("simclr").mean("seconds") == pytest.approx(110.0 * 1.02)


def test_one_seed_has_a_standard_error_and_no_test(tmp_path):
    write_results(tmp_path, seeds=[0])
    table = table_of(tmp_path)
    assert str(table.row("simclr").cells["linear"]).endswith(" s.e. 1.1")
    assert {row.cells["linear"].standing for row in table.rows if "linear" in row.cells} == {BEST, ""}
    assert "with fewer than 3 seeds, differences are not tested" in summary(table)[0]


def test_nothing_run_yet(tmp_path):
    write_results(tmp_path)
    for file in (tmp_path / "metrics").rglob("*.json"):
        file.unlink()
    report.main(tmp_path)
    table = table_of(tmp_path)
    assert table.leaders == {}
    assert summary(table)[0] == "No self-supervised entry has finished under every seed, so nothing is ranked."
    assert {row.status for row in table.rows} == {"missing"}
    assert json.loads(written(tmp_path)["summary.json"])["image"] == {name: {} for name in TABLE}


def test_without_labels_nothing_is_ranked(root):
    unlabel(root)
    report.main(root)
    table = table_of(root)
    assert (table.leaders, table.columns, table.agreement, table.pareto) == ({}, {}, {}, [])
    assert summary(table)[0] == "The data have no labels, so there is no accuracy to rank by."
    assert "### Health" in written(root)["README.md"]


def test_what_lies_around_is_not_read(root):
    write_run(root / "metrics/image/forgotten", "simclr", 0, 99)
    write_run(root / "metrics/image/simclr", "simclr", 7, 99)
    write_json(root / "metrics/image/simclr.json", {"linear": 1.0})  # the summary for `dvc metrics show`
    table = table_of(root)
    assert "forgotten" not in [row.entry.name for row in table.rows]
    assert table.row("simclr").cells["linear"].estimate.n == 3


# The files


def test_same_files_same_bytes(root, files):
    report.main(root)
    assert written(root) == files


def section(text, title):
    """The lines of the first table under a heading of reports/README.md."""
    return [line for line in text.split(f"### {title}\n\n")[1].split("\n\n")[0].splitlines() if line.startswith("|")]


def test_cells_of_failed_runs_are_explicit(root):
    for seed in SEEDS:
        (root / f"metrics/image/moco/evaluate/{seed}.json").unlink()
    report.main(root)
    files = written(root)
    lines = {line.split("]")[0].removeprefix("| ["): line for line in section(files["README.md"], "Accuracy")}
    assert lines["moco"].count("| not evaluated ") == 5 + 1  # each measure, and the status
    assert "<br>2 of 3 seeds" in lines["byol"]
    assert re.search(r"^moco & not evaluated & not evaluated &", files["paper.tex"], re.MULTILINE)
    rows = [row for row in csv.DictReader(files["results.csv"].splitlines()) if row["method"] == "moco"]
    assert {(row["value"], row["status"]) for row in rows if row["measure"] == "linear"} == {("", "not evaluated")}


def test_markdown_tables_are_whole(files, table):
    for title in ("Accuracy", "Standing", "Health", "Cost", "Agreement with the linear probe"):
        lines = section(files["README.md"], title)
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(widths) == 1, title
    assert len(section(files["README.md"], "Cost")) == 2 + len(TABLE)
    simclr = next(line for line in section(files["README.md"], "Standing") if line.startswith("| simclr |"))
    place = table.row("simclr").cells["linear"].place
    assert f"| {place.mean:.1f} ({place.low} to {place.high}) |" in simclr
    lidar = next(line for line in section(files["README.md"], "Agreement with the linear probe") if "LiDAR" in line)
    assert lidar == "| LiDAR | higher | 6 | +1.00 | +1.00 |"


def test_standing_in_the_leaderboard(files, table):
    rows = {(r["method"], r["measure"]): r for r in csv.DictReader(files["leaderboard.csv"].splitlines())}
    moco, cell = rows["moco", "knn"], table.row("moco").cells["knn"]
    assert float(moco["p_holm"]) == pytest.approx(cell.comparison.p, abs=1e-4)
    assert (int(moco["place"]), int(moco["place_low"])) == (cell.place.rank, cell.place.low)
    assert float(moco["gain_p_holm"]) == pytest.approx(cell.gain.p, abs=1e-4)
    assert (moco["n"], moco["standing"]) == ("3", cell.standing)
    assert rows["byol", "knn"]["place"] == rows["byol", "knn"]["p_holm"] == rows["byol", "knn"]["gain_p_holm"] == ""


def test_agreement_as_a_table(files, table):
    rows = {row["measure"]: row for row in csv.DictReader(files["agreement.csv"].splitlines())}
    assert list(rows) == list(table.agreement)
    assert rows["alignment"]["better"] == "lower"
    found = table.agreement["uniformity"]
    assert [float(rows["uniformity"][key]) for key in ("spearman", "spearman_low", "kendall", "kendall_high")] == (
        pytest.approx([found.spearman.value, found.spearman.low, found.kendall.value, found.kendall.high], abs=1e-4)
    )


def test_latex_is_well_formed(files):
    text = files["paper.tex"]
    assert text.isascii()
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert begun == ["table", "tabular"]
    assert ended == begun[::-1]
    bare = re.sub(r"\\[{}$&%#_\\]", "", text)  # without what is escaped
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    lines = [line for line in body.strip().splitlines() if line != r"\midrule"]
    assert len(lines) == 1 + len(TABLE)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {5}  # of {l r r r r r}
    assert all(line.endswith(r" \\") for line in lines)
    assert r"\begin{tabular}{@{}lrrrrr@{}}" in text
    known = {"begin", "end", "centering", "small", "caption", "label", "toprule", "midrule", "bottomrule", "textbf"}
    known |= {"pm", "textless", "textgreater", "textbar", "usepackage"}
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) == known


def test_latex_names_what_stands_behind_a_mean(files, tmp_path):
    interval, error = "mean and half its 95", "in brackets the standard error of the test set alone"
    assert interval in files["paper.tex"]
    assert error in files["paper.tex"]  # of entries with a seed too few
    assert re.search(r"^byol & 62.7 \(1.1\) & ", files["paper.tex"], re.MULTILINE)
    write_results(tmp_path, seeds=[0], entries=["untrained", "simclr"])
    report.main(tmp_path)
    text = written(tmp_path)["paper.tex"]
    assert error in text
    assert interval not in text
    assert r"\pm" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b & 50 % #1 {x} $y$", r"a\_b \& 50 \% \#1 \{x\} \$y\$"),
        ("\\input{/etc/passwd}^~", r"\textbackslash{}input\{/etc/passwd\}\textasciicircum{}\textasciitilde{}"),
        ("na\u00efve \u732b\n\x00", "naive ? ?"),
    ],
)
def test_latex_shows_any_text(text, shown):
    assert escape(text) == shown


def test_needs_neither_data_nor_weights(made):
    assert not (made / "data").exists()
    assert not (made / "models").exists()


class Page(HTMLParser):
    """Tags, and all attributes that could load something."""

    LOADING = ("src", "srcset", "href", "xlink:href", "data", "poster", "action", "style", "content")

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag != "a":
            self.loads += [value for name, value in attributes if name in self.LOADING and value]


def test_page_loads_nothing(files):
    text = files["index.html"]
    page = Page(text)
    assert not [value for value in page.loads if "//" in value or "url(http" in value]
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "@import" not in text
    assert len(text) < 500_000


def test_hostile_names_are_text(files):
    assert Page(files["index.html"]).tags.count("script") == 1
    assert "<script>alert" not in files["index.html"]
    assert "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;|`$x$" in files["index.html"]
    name = r"&lt;script&gt;alert('1')&lt;/script&gt;\|\`$x$"
    lines = [line for line in files["README.md"].splitlines() if line.startswith("|") and "alert" in line]
    assert lines[0].startswith(f"| [{name}](../ssl_methods/clustering/swav.py) | clustering | ")
    assert [line.count(name) for line in lines] == [1] * 4  # of accuracy, standing, health and cost
    (line,) = [line for line in files["paper.tex"].splitlines() if "alert" in line]
    assert line.startswith(
        r"\textless{}script\textgreater{}alert('1')\textless{}/script\textgreater{}\textbar{}`\$x\$ & "
    )


def test_figures_follow_the_theme(files):
    text = files["index.html"]
    assert "currentColor" in text
    assert "#000000" not in text
    assert "#010203" not in text


def test_page_shows_sweeps_sources_and_provenance(files):
    text = files["index.html"]
    assert "Best of 2 trials: 61.5 on validation data. The settings in use: 60.0." in text
    assert "data:image/svg+xml;base64," in text
    assert re.search(r"<h3>Sweep of moco</h3>\s*<p>Not run yet.", text)
    assert '<a href="https://arxiv.org/abs/2002.05709">paper</a>' in text
    assert '<span class="idea">SIMCLR: what it does</span>' in text
    assert "<td>python 3.11.2, torch 2.14.1</td><td><code>c0nf00000004</code></td>" in text
    assert "<code>tags.entry = 'simclr' and tags.kind = 'seed'</code>" in text


def test_tables_to_compute_with(files, table):
    runs = list(csv.DictReader(files["results.csv"].splitlines()))
    accuracies = [(row["method"], row["seed"]) for row in runs if row["measure"] == "finetune"]
    assert accuracies == [(name, str(seed)) for name in TABLE for seed in SEEDS]
    found = {(row["method"], row["seed"], row["measure"]): row["value"] for row in runs}
    assert found["simclr", "0", "low_label 1 %_accuracy"] == found["simclr", "0", "low_label"]
    assert found["simclr", "0", "discarded_parameters"] == "190000"
    assert ("simclr", "0", "transfer") not in found  # no run has it
    lost = [row for row in runs if (row["method"], int(row["seed"])) == MISSING]
    assert {(row["value"], row["status"]) for row in lost} == {("", "missing")}
    mean = np.mean([float(row["value"]) for row in runs if (row["method"], row["measure"]) == ("simclr", "linear")])
    assert json.loads(files["summary.json"])["image"]["simclr"]["linear"] == pytest.approx(mean, abs=0.005)
    board_rows = {(r["method"], r["measure"]): r for r in csv.DictReader(files["leaderboard.csv"].splitlines())}
    assert float(board_rows["simclr", "knn"]["high"]) == pytest.approx(
        table.row("simclr").cells["knn"].estimate.high, abs=0.001
    )
    assert board_rows["byol", "knn"]["low"] == board_rows["byol", "knn"]["mean"]
    curves = list(csv.DictReader(files["curves.csv"].splitlines()))
    assert sum((row["method"], row["seed"]) == ("byol", "1") for row in curves) == 60


def test_readme_block(root, table):
    report.main(root)
    text = (root / "README.md").read_text()
    assert (
        text
        == f"# Title\n\n<!-- results image -->\n{report.readme_table(table)}\n<!-- /results image -->\n\nThe end.\n"
    )
    assert "| [simclr](ssl_methods/contrastive/simclr.py) | contrastive | **6" in text
    report.main(root)
    assert (root / "README.md").read_text() == text


def test_what_was_measured_of_speed_is_a_section_of_both_documents(root):
    report.main(root)
    assert 'id="speed"' not in (root / "reports/index.html").read_text()
    limit = {"tera_multiply_adds_float32": 0.25, "copy_gigabytes": 12.6}
    growth = {"width": [{"at": 16, "seconds": 1e-3}, {"at": 64, "seconds": 4e-3}]}
    measured = {"device": HOSTILE, "precision": "float32", "torch": "2", "limit": limit, "growth": growth}
    write_json(root / "reports/speed.json", measured)
    report.main(root)
    text, page = (root / "reports/README.md").read_text(), (root / "reports/index.html").read_text()
    assert "### As work grows" in text
    assert "| width | 16, 64 | 1,000, 4,000 | +1.00 |" in text
    assert 'id="speed"' in page
    assert '<td class="number">1,000, 4,000</td>' in page
    assert HOSTILE not in text + page


def test_an_incomplete_record_of_speed_is_shown_as_far_as_it_goes(root):
    pace = {"median": 9.0, "low": 8.0, "high": 10.0}
    write_json(root / "reports/speed.json", {
        "device": "cpu: old", "growth": {}, "overhead": {"nothing": 1.5},
        "methods": {"image/simclr": {"samples_per_second": pace}}, "peers": {"simclr": {"ours": pace}},
    })  # fmt: skip
    report.main(root)
    text = (root / "reports/README.md").read_text()
    assert "\n\nMeasured on cpu: old.\n\n" in text
    assert "| entry | samples/s | batch, % |" in text  # neither multiply-adds nor products
    assert "takes no steps | 1.5 s |" in text
    assert "As work grows" not in text
    write_json(root / "reports/speed.json", {"device": "cpu: old"})
    report.main(root)
    assert "## Speed" not in (root / "reports/README.md").read_text()


def test_readme_without_markers_is_left_alone(root):
    (root / "README.md").write_text("Nothing here.\n")
    report.main(root)
    assert (root / "README.md").read_text() == "Nothing here.\n"


def test_this_repositorys_readme_holds_its_results():
    """A number in the README comes from a result file."""
    readme = ROOT / "README.md"
    if not measured(ROOT, "evaluate") or not readme.exists() or "<!-- results" not in readme.read_text():
        pytest.skip("no results yet")
    results = read(ROOT)
    assert results.modalities
    for modality in results.modalities:
        assert report.readme_table(board(modality, results.seeds)) in readme.read_text()


# Any subset


def leave_out(root, **changes):
    """Changes the blocks of `benchmark` in params.yaml."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["benchmark"] |= changes
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def test_a_modality_without_entries_is_mentioned_nowhere(root, files):
    readme = (root / "README.md").read_text()
    (root / "README.md").write_text(f"{readme}<!-- results text -->\nold\n<!-- /results text -->\n")
    leave_out(root, text={"data": "emoji", "training": "laptop", "methods": [], "sweeps": ["simclr"]})
    plan = json.loads((root / "plan.json").read_text())
    write_json(root / "plan.json", plan | {"pretrain": plan["pretrain"] | {"text": {}}})
    report.main(root)
    assert written(root) == files  # as if there had never been one
    text = (root / "README.md").read_text()
    assert text.endswith("<!-- results text -->\n<!-- /results text -->\n")
    assert "| [simclr]" in text


def test_no_modality_at_all_is_one_clear_line(root):
    leave_out(root, image={"data": "emoji", "training": "laptop", "methods": []})
    with pytest.raises(InputError, match=r"^benchmark: no modality has an entry.*name one under `methods`$"):
        report.main(root)


@pytest.mark.parametrize("entry", ["simclr", "untrained", "supervised"])
def test_a_single_entry(entry, tmp_path):
    write_results(tmp_path, entries=[entry])
    report.main(tmp_path)
    files, said = written(tmp_path), summary(table_of(tmp_path))
    assert len(section(files["README.md"], "Accuracy")) == 3
    assert said[0].endswith(": no other is ranked." if entry == "simclr" else "so nothing is ranked.")
    assert "Differences from the best" not in files["index.html"]
    assert "Agreement with" not in files["README.md"].split("## How")[0]


def test_one_seed_has_no_interval_and_no_column_of_dashes(tmp_path):
    write_results(tmp_path, seeds=[0])
    report.main(tmp_path)
    files = written(tmp_path)
    tables, page = files["README.md"].split("## How")[0], files["index.html"]
    assert "±" not in tables
    assert "interval" not in tables.split("Agreement")[0]
    assert "### Standing" not in tables
    assert 'data-label="gain"' in page
    assert 'data-label="place"' not in page
    assert "Differences from the best" not in page


def test_a_status_is_shown_where_one_is_not_ok(tmp_path, files):
    assert "| status |" in files["README.md"]
    assert 'data-label="status"' in files["index.html"]
    write_results(tmp_path, entries=["untrained", "simclr", "moco"])
    report.main(tmp_path)
    assert "| status |" not in (tmp_path / "README.md").read_text() + written(tmp_path)["README.md"]
    assert 'data-label="status"' not in written(tmp_path)["index.html"]


def test_data_without_labels_are_reported_by_their_health(root):
    unlabel(root)
    report.main(root)
    files = written(root)
    assert 'data-show="health"' in files["index.html"]
    assert "tabular" not in files["paper.tex"]
    assert "| method | family | effective rank | CPU-seconds | status |" in (root / "README.md").read_text()
    assert len(files["leaderboard.csv"].splitlines()) == len(files["agreement.csv"].splitlines()) == 1  # their headings


def test_without_sweeps_there_is_no_section_of_them(tmp_path):
    write_results(tmp_path, entries=["untrained", "moco", "mae"])
    leave_out(tmp_path, image={"data": "emoji", "training": "laptop", "methods": ["untrained", "moco", "mae"]})
    report.main(tmp_path)
    assert "sweep" not in written(tmp_path)["index.html"].lower()


def test_seconds_of_a_gpu_are_seconds(root):
    assert table_of(root).seconds == "CPU-seconds"
    for path in measured(root, "pretrain"):
        found = json.loads(path.read_text())
        write_json(path, found | {"provenance": found["provenance"] | {"device": "cuda: H200"}})
    report.main(root)
    files = written(root)
    assert "CPU-" not in re.sub("CPU-seconds are those of all threads", "", files["README.md"] + files["index.html"])
    assert "| method | seconds | samples/s |" in files["README.md"]


# Mistakes


def test_broken_result_is_named(root):
    (root / "metrics/image/simclr/evaluate/0.json").write_text("{")
    with pytest.raises(InputError, match=r"simclr/evaluate/0\.json is not valid JSON"):
        report.main(root)


def test_old_plan_is_named(root):
    plan = json.loads((root / "plan.json").read_text())
    del plan["pretrain"]["image"]["moco"]
    write_json(root / "plan.json", plan)
    with pytest.raises(InputError, match=r"no entry 'moco' of image.*dvc repro plan"):
        report.main(root)


@pytest.mark.parametrize(
    ("docstring", "clause"),
    [
        ("SimCLR: two views\nmeet. And more.", "SimCLR: two views meet"),
        ("One thing; another.", "One thing"),
        ("Version 1.5 of it.\n\nSecond.", "Version 1.5 of it"),
        ("", ""),
    ],
)
def test_first_clause(docstring, clause):
    assert first_clause(docstring) == clause


def test_what_names_alone_tell_is_told_the_best_first(table):
    told = "Told by the classes' names alone, without labels (the largest class: 19.2 %): mae 42.0 % and pca 32.0 %."
    assert told in summary(table)
