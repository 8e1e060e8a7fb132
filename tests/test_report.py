"""The report: statistics with known answers, and pages of made-up results in which all that can happen has."""

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from stages import report, statistics
from stages.board import BEST, TIED, board, summary
from stages.results import first_clause, read
from stages.settings import InputError

ROOT = Path(__file__).parent.parent
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


def table_of(root):
    results = read(root)
    return board(results.modalities[0], results.seeds)


def write_results(root, seeds=SEEDS):
    """What the report reads of a repository; one run each has diverged, has collapsed, and is missing."""
    training = {"encoder": "small_resnet", "epochs": 9, "batch_size": 256, "optimizer": "adamw", "lr": 0.002}
    benchmark = {"data": "emoji", "training": "laptop", "methods": list(TABLE), "sweeps": ["simclr", "moco"]}
    sweep = {"trials": 5, "epochs": 3, "space": {"temperature": {"low": 0.05, "high": 1.0}}}
    params = {
        "seeds": seeds,
        "benchmark": {"image": benchmark},
        "datasets": {"emoji": {"size": 32}},
        "training": {"laptop": training},
        "encoders": {"small_resnet": {"architecture": "ResNet"}, "vit": {"architecture": "ViT"}},
        "methods": {name: {"method": row[0]} for name, row in TABLE.items()},
        "evaluation": {"strengths": [0.01], "neighbours": [20]},
        "sweeps": {"simclr": sweep, "moco": sweep},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    entries = {
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
        "pretrain": {"image": entries},
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
            if (name, seed) != MISSING:
                write_run(root / "metrics/image" / name / str(seed), name, seed, row)
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
    write_json(folder / "pretrain.json", {
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
    errors = {"linear_error": 1.1, "knn_error": 1.15, "linear_validation": linear + 0.5, "knn_validation": linear - 3}
    heights = {"stage 1": linear - 9, "stage 2": linear, "stage 3": linear - seed % 2}
    chosen = f"stage {3 - seed % 2}"
    if name == "pca":
        heights, chosen = {"features": linear}, "features"
    errors |= {"depths": heights, "choices": {"depth": chosen}}
    if name in ("pca", "mae"):
        errors["retrieval"] = {"sound to film": {"r1": row + seed, "chance_r1": 1.25}}
        errors["zero_shot"] = {"accuracy": 30.0 + row + seed, "majority": 19.25}
    scores = dict.fromkeys(scores) if diverged else scores
    data = {"classes": list("abcdefghi"), "rows": {"train": 8464, "validation": 1814, "test": 1814}}
    write_json(folder / "scores.json", {"status": status, **scores})
    write_json(
        folder / "evaluate.json",
        {"status": status, "provenance": provenance, "data": data, "seconds": 7.0} | (errors if not diverged else {}),
    )


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


# Statistics


def test_interval_is_students():
    values = [63.1, 64.0, 65.2, 63.9]
    found = statistics.estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((64.05, low, high))


@pytest.mark.parametrize("n", [1, 2])
def test_no_interval_below_three_seeds(n):
    found = statistics.estimate([60.0, 61.0][:n])
    assert found.mean == [60.0, 60.5][n - 1]
    assert found.low is found.high is found.half_width is None


def test_nothing_to_average():
    with pytest.raises(ValueError, match="no values"):
        statistics.estimate([])


def test_difference_is_paired_over_shared_seeds():
    found = statistics.difference({0: 5.0, 1: 7.0, 2: 9.0, 9: 1e6}, {2: 8.0, 1: 5.0, 0: 2.0, 8: -1e6})
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(2) at 0.975, deviation 1


def test_paired_p_is_scipys():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 5))
    found = statistics.paired_p(dict(enumerate(a)), dict(enumerate(b)))
    assert found == pytest.approx(stats.ttest_rel(a, b).pvalue)


@pytest.mark.parametrize(("other", "p"), [([1.0, 2.0, 3.0], 1.0), ([2.0, 3.0, 4.0], 0.0)])
def test_paired_p_of_constant_differences(other, p):
    assert statistics.paired_p(dict(enumerate(other)), {0: 1.0, 1: 2.0, 2: 3.0}) == p


def test_holm():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x 0.01; 2 x 0.03; at least that
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_tie_with_the_leader():
    entries = {
        "near": {0: 63.0, 1: 65.1, 2: 63.9},
        "best": {0: 64.0, 1: 65.0, 2: 64.0},
        "far": {0: 50.0, 1: 51.1, 2: 50.0},
    }
    leader, others = statistics.compare(entries)
    assert leader == "best"
    assert {name: comparison.tied for name, comparison in others.items()} == {"near": True, "far": False}


def test_holm_can_make_a_tie():
    """A difference that one test calls real is a tie among many tests."""
    best = {0: 0.0, 1: 0.0, 2: 0.0}
    behind = {0: -1.0, 1: -1.2, 2: -1.45}
    assert stats.ttest_rel(list(behind.values()), [0, 0, 0]).pvalue < 0.05 / 2
    assert not statistics.compare({"best": best, "behind": behind})[1]["behind"].tied
    equals = {f"equal{i}": {0: -0.1 * i, 1: 0.1, 2: -0.2} for i in range(1, 9)}
    assert statistics.compare({"best": best, "behind": behind, **equals})[1]["behind"].tied


# The table


def test_ranks_only_self_supervised_entries_that_finished(table):
    assert table.leaders == {"linear": "simclr", "linear_depth": "simclr", "knn": "simclr"}
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


def test_a_method_that_reads_labels_does_not_lead(root):
    source = root / "ssl_methods/contrastive/simclr.py"
    source.write_text(source.read_text().replace("('image',)", "('image', 'label')"))
    table = table_of(root)
    assert table.leaders["linear"] == "moco"
    assert [row.entry.name for row in table.labelled] == ["supervised", "simclr"]


def test_failures_are_rows(files, table):
    for name, status in {
        DIVERGED[0]: "2 ok, 1 diverged (step 61)",
        COLLAPSED[0]: "2 ok, 1 collapsed",
        MISSING[0]: "2 ok, 1 missing",
    }.items():
        assert table.row(name).status == status
        assert f">{status}</td>" in files["index.html"]
        assert re.search(rf"^\| \[{name}\].* \| {re.escape(status)} \|$", files["README.md"], re.MULTILINE)
    words = summary(table)
    assert "Diverged: byol (1 of 3 seeds)." in words
    assert "Collapsed: simsiam (1 of 3 seeds)." in words
    assert "Missing: rotation (1 of 3 seeds)." in words


def test_summary_names_the_leader_and_the_budget(table):
    words = summary(table)
    assert words[0].startswith("By linear probe, simclr leads with 6")
    assert words[0].endswith("; moco cannot be told apart from it.")
    assert "Every self-supervised run saw 76,800 samples." in words
    assert words[-1].endswith(
        "(9 classes, 8,464 rows in train, 1,814 rows in validation and 1,814 rows in test); seeds 0, 1 and 2."
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
    scores = root / "metrics/image/moco/0/scores.json"
    write_json(scores, {"status": "diverged", "linear": None, "knn": None})
    assert table_of(root).row("moco").status == "1 diverged, 2 ok"


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
    assert {row.status for row in table.rows} == {"missing"}
    assert json.loads(written(tmp_path)["summary.json"])["image"] == {name: {} for name in TABLE}


def test_what_lies_around_is_not_read(root):
    write_run(root / "metrics/image/forgotten/0", "simclr", 0, 99)
    write_run(root / "metrics/image/simclr/7", "simclr", 7, 99)
    table = table_of(root)
    assert "forgotten" not in [row.entry.name for row in table.rows]
    assert table.row("simclr").cells["linear"].estimate.n == 3


# The files


def test_same_files_same_bytes(root, files):
    report.main(root)
    assert written(root) == files


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
    (line,) = [line for line in files["README.md"].splitlines() if "alert" in line]
    assert line.startswith(r"| [&lt;script&gt;alert('1')&lt;/script&gt;\|\`$x$](../ssl_methods/clustering/swav.py) |")


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


def test_tables_to_compute_with(files, table):
    runs = list(csv.DictReader(files["results.csv"].splitlines()))
    assert len(runs) == len(TABLE) * len(SEEDS) * len(report.RECORDED)
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


def test_readme_without_markers_is_left_alone(root):
    (root / "README.md").write_text("Nothing here.\n")
    report.main(root)
    assert (root / "README.md").read_text() == "Nothing here.\n"


def test_this_repositorys_readme_holds_its_results():
    """A number in the README comes from a result file."""
    readme = ROOT / "README.md"
    if not (ROOT / "metrics").exists() or not readme.exists() or "<!-- results" not in readme.read_text():
        pytest.skip("no results yet")
    results = read(ROOT)
    for modality in results.modalities:
        assert report.readme_table(board(modality, results.seeds)) in readme.read_text()


# Mistakes


def test_broken_result_is_named(root):
    (root / "metrics/image/simclr/0/scores.json").write_text("{")
    with pytest.raises(InputError, match=r"simclr/0/scores\.json is not valid JSON"):
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
