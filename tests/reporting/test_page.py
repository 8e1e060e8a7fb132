"""The page and its figures: known answers for what is drawn, and pages with and without all that runs may record."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from PIL import Image

from ssl_methods import Method
from ssl_methods.encoders.convolutional import ResNet
from ssl_methods.encoders.transformers import patchify
from ssl_methods.modalities import image
from stages.reporting import figures, markdown, page, speed_report
from stages.reporting.results import Run, read
from stages.reporting.schedule import schedule
from stages.reporting.statistics import Correlation
from stages.reporting.table import board
from stages.reporting.text import NONE, correlation
from stages.training import panels
from stages.training.loop import build_method
from tests.methods.test_methods import small
from tests.reporting.test_report import HOSTILE, TABLE, measured, write_json, write_results

CLASSES = list("abcdefghi")
WEBP = "UklGRhgAAABXRUJQVlA4TAwAAAAvAAAAAAfQ//73v/8BiOh/AAA="  # one white pixel


def rendered(root):
    results = read(root)
    boards = [board(modality, results.seeds) for modality in results.modalities]
    return page.render(boards, speed_report.read(root), schedule(results))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The page of results without anything to look at."""
    root = tmp_path_factory.mktemp("plain")
    write_results(root)
    for file in measured(root, "evaluate"):
        write_json(file, json.loads(file.read_text()) | {"low_label_details": {}})
    return rendered(root)


@pytest.fixture(scope="module")
def rich_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("rich")
    write_results(root)
    enrich(root)
    return root


@pytest.fixture(scope="module")
def rich(rich_root):
    return rendered(rich_root)


def enrich(root):
    """Adds all that runs may record for people to look at, to every run that has a result."""
    for row, name in enumerate(TABLE):
        folder = root / "metrics/image" / name
        for file in sorted(folder.glob("evaluate/*.json")):
            seed = int(file.stem)
            pretrain, evaluate = (
                json.loads((folder / f"{s}/{file.name}").read_text()) for s in ("pretrain", "evaluate")
            )
            if evaluate["linear"] is None:
                continue
            random = np.random.default_rng([row, seed])
            angles = np.arange(90) / 90 * 2 * np.pi
            pretrain["clock"] = [1000 * row + 20 * seed, 1000 * row + 20 * seed + 60]  # seeds side by side
            evaluate["map"] = {"x": np.cos(angles).round(2).tolist(), "y": np.sin(angles).round(2).tolist()}
            evaluate["map"]["label"] = [i // 10 for i in range(90)]
            evaluate["confusion"] = random.multinomial(40, np.full(9, 1 / 9), 9).tolist()
            evaluate["neighbours"] = {"webp": WEBP, "queries": 6}
            evaluate["low_label_details"] = {
                "1 per class": {"accuracy": evaluate["linear"] / 2 + seed, "draws": [], "rows": 9},
                "10 %": {"accuracy": evaluate["linear"] - 5, "draws": [], "rows": 846},
            }
            pretrain["views"] = {"webp": WEBP, "rows": ["picture", "view 1"]}
            for point in pretrain["curve"]:
                point["effective_rank"] = 10 + point["step"] / 100
            write_json(folder / f"pretrain/{seed}.json", pretrain)
            write_json(file, evaluate)


# What a method sees


class Seer(Method):
    """Shows its encoder the mirrored picture and the negative, one view after the other or picture by picture."""

    columns = ("image",)

    def __init__(self, *, in_turn: bool):
        super().__init__()
        self.encoder, self.in_turn = ResNet(width=4, blocks=[1]).eval(), in_turn

    def forward(self, batch):
        x = image.unit(batch["image"])
        views = torch.stack([x.flip(3), 1 - x], dim=0 if self.in_turn else 1)
        return self.encoder(views.flatten(0, 1)).mean(), {}


@pytest.fixture
def data(tmp_path, pictures):
    """Held-out pictures, of which the odd may be shown."""
    (tmp_path / "validation").mkdir()
    np.save(tmp_path / "validation/image.npy", pictures.numpy())
    show = {"validation": list(range(1, len(pictures), 2))}
    splits = {"train": {"rows": 0}}
    write_json(tmp_path / "manifest.json", {"classes": [], "facts": {}, "splits": splits, "show": show})
    return tmp_path


def built(params, name, **hyper):
    return build_method(small(params.entry("image", name), **hyper), {"size": 16, "classes": 2}, seed=0).eval()


def tiles(webp, rows):
    """A sheet taken apart again: (rows, pictures, 3, h, w) in [0, 1]."""
    sheet = torch.tensor(np.array(Image.open(io.BytesIO(base64.b64decode(webp))).convert("RGB"))) / 255
    sheet = sheet.permute(2, 0, 1).unflatten(2, (panels.VIEWED, -1)).unflatten(1, (rows, -1))
    return sheet.permute(1, 3, 0, 2, 4)[..., 1:-1, 1:-1]


@pytest.mark.parametrize("in_turn", [True, False])
def test_views_are_of_the_pictures_above_them(in_turn, data, pictures):
    found = panels.views(Seer(in_turn=in_turn), data, torch.device("cpu"), batch_size=16)
    assert found["rows"] == ["picture", "view 1", "view 2"]
    batch = pictures[1::2][::8]  # 16 of the 128 that may be shown, evenly spread, and 8 of those
    expected = batch[::2].float() / 255
    seen = tiles(found["webp"], 3)
    for shown, true in zip(seen, (expected, expected.flip(3), 1 - expected), strict=True):
        error = (shown - true).abs().mean((1, 2, 3))
        others = (shown[:, None] - true[None]).abs().mean((2, 3, 4))
        assert error.max() < 0.06  # what WebP loses
        assert (others.argmin(1) == torch.arange(8)).all()


@pytest.mark.parametrize("name", ["autoencoder", "untrained"])
def test_what_sees_the_pictures_themselves_has_no_views(name, data, params):
    assert panels.views(built(params, name), data, torch.device("cpu"), 16) is None


def test_pictures_that_do_not_fill_a_batch_are_no_views(data):
    assert panels.views(Seer(in_turn=True), data, torch.device("cpu"), batch_size=129) is None


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_hidden_patches_are_grey(name, pictures, params):
    method = built(params, name, strength=0.0)
    batch = {"image": pictures[:16]}
    (seen,) = panels.entered(method, [method.encoder], batch)
    patches, true = patchify(seen, method.encoder.patch), patchify(pictures[:16] / 255, method.encoder.patch)
    hidden = (patches == 0.5).all(2)
    length = method.encoder.length
    count = length - method.visible if name == "mae" else round(0.6 * (method.side // 2) ** 2 + 0.499) * 4
    assert (hidden.sum(1) == count).all()
    torch.testing.assert_close(patches[~hidden], true[~hidden], rtol=0, atol=1e-6)
    assert not method.encoder.transformer._forward_pre_hooks  # as it was


def test_views_that_stand_together_are_told_from_views_in_turn():
    x = torch.arange(6)
    in_turn = panels.by_view(x, torch.tensor([1, 0, 0, 1, 0, 0]).bool(), pictures=3)
    together = panels.by_view(x, torch.tensor([1, 1, 0, 0, 0, 0]).bool(), pictures=3)
    assert [view.tolist() for view in in_turn] == [[0, 1, 2], [3, 4, 5]]
    assert [view.tolist() for view in together] == [[0, 2, 4], [1, 3, 5]]
    assert panels.by_view(x, torch.zeros(6).bool(), pictures=4) == ()


# Figures


@pytest.mark.parametrize("count", [5, 28, 120])
def test_names_cover_neither_points_nor_names(count):
    random = np.random.default_rng(count)
    points = [
        figures.Point(f"method_{i}", "masked", float(random.uniform(5, 15)), float(random.normal(54, 2)), None, None)
        for i in range(count)
    ]
    figure, axes = plt.subplots(figsize=figures.WIDE)
    axes.plot([p.seconds for p in points], [p.accuracy for p in points], "o")
    figures.write_names(axes, points)
    figure.canvas.draw()
    texts = [child for child in axes.get_children() if isinstance(child, Annotation)]
    boxes = {text.get_text(): Text.get_window_extent(text) for text in texts}  # of the words, without a line
    places = {p.name: axes.transData.transform((p.seconds, p.accuracy)) for p in points}
    plt.close(figure)
    assert not [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    assert not [name for name in boxes for place in places.values() if boxes[name].contains(*place)]
    assert "method_0" in boxes  # the first to be placed
    assert len(boxes) >= 0.9 * count if count < 100 else 20 < len(boxes) < count
    for text in texts:
        away = [figures.off(boxes[text.get_text()], *place) for place in places.values()]
        own = figures.off(boxes[text.get_text()], *places[text.get_text()])
        assert text.arrow_patch.get_visible() or own <= min(away) + 0.01


def test_points_are_told_by_their_titles():
    drawn = figures.scatter([figures.Point("a<b>&", "masked", 12.4, 54.25, 53, 55)], [], {}, "probe", "CPU-seconds")
    assert "<title>a&lt;b&gt;&amp;: 54.2 % in 12 CPU-seconds</title>" in drawn
    assert "CPU-seconds of pretraining" in drawn
    assert 'id="title' not in drawn


def test_lines_of_text_stand_apart():
    _, axes = plt.subplots()
    axes.set_ylim(0, 100)
    values = [50.0, 50.1, 90.0]
    places = figures.apart(axes, values, gap=11)
    pixels = [axes.transData.transform((0, y))[1] for y in places]
    plt.close()
    assert (places[0], places[2]) == pytest.approx((50.0, 90.0))
    assert pixels[1] - pixels[0] == pytest.approx(11 * axes.figure.dpi / 72)


def test_the_distance_of_a_point_from_a_box():
    box = Bbox.from_bounds(10, 20, 30, 5)
    assert figures.off(box, 6, 17) == 5
    assert figures.off(box, 20, 28) == 3


# What is shown of runs


def row_of(*evaluations, pretrain=()):
    runs = [Run(seed, {}, evaluate) for seed, evaluate in enumerate(evaluations)]
    runs = runs or [Run(seed, found, {}) for seed, found in enumerate(pretrain)]
    return SimpleNamespace(entry=SimpleNamespace(runs=runs, family="masked"))


def test_few_labels_are_averaged_over_seeds():
    found = [
        {"low_label_details": {"1 %": {"accuracy": a, "rows": 84}, "10 %": {"accuracy": a + 9, "rows": 846}}}
        for a in (30, 34)
    ]
    assert page.means_by_labels(row_of(*found, {})) == {84: 32.0, 846: 41.0}


def test_confusions_are_summed_and_then_normalised():
    found = [{"confusion": [[3, 1], [0, 0]]}, {"confusion": [[1, 3], [0, 2]]}, {"confusion": []}]
    assert page.confusion(row_of(*found), ["a", "b"]) == [("a", 8, [50, 50]), ("b", 2, [0, 100])]
    assert page.confusion(row_of({}), ["a", "b"]) == []
    many = [str(i) for i in range(page.SHOWN_CLASSES + 1)]
    assert page.confusion(row_of({"confusion": np.eye(len(many)).tolist()}), many) == []


def test_a_map_keeps_its_shape():
    found = {"x": [0.0, 10.0, 0.0], "y": [0.0, 0.0, 5.0], "label": [0, 1, 1]}
    (a, _, first), (b, _, second) = page.embedding(found, ["a", "b"])
    assert (a, b) == ("a", "b")
    assert first == "M2.0 74.0h0"  # 96 / 10 of a unit each, in the middle, up is up
    assert second == "M98.0 74.0h0M2.0 26.0h0"
    assert page.embedding(None, ["a"]) == []


def test_curves_leave_out_what_is_not_a_number():
    curve = [
        {"samples": 1, "loss": 2.0},
        {"samples": 2, "loss": float("nan")},
        {"samples": 3, "loss": 1.0, "rank": 4.0},
    ]
    names = [name for name, _ in page.plots(row_of(pretrain=[{"curve": curve}, {"curve": []}]))]
    assert names == ["loss"]  # one value of `rank` is no curve


def test_a_docstring_is_read_in_blocks():
    text = "Idea: one\nsentence.\n\n    a = b      Eq. (1)\n      + c\n\nDeparts: no."
    assert page.about(text) == [
        (False, "Idea: one\nsentence."),
        (True, "a = b      Eq. (1)\n  + c"),
        (False, "Departs: no."),
    ]


def test_settings_read_as_in_the_parameters():
    assert (
        page.settings({"lr": 0.002, "clip": None, "noise": [0.05], "batch": 64})
        == "lr 0.002, clip none, noise [0.05], batch 64"
    )


def test_what_stands_in_backticks_is_code():
    assert page.code("of `a<b>`, & `c`") == "of <code>a&lt;b&gt;</code>, &amp; <code>c</code>"
    assert page.code(page.Markup("<a>`c`</a>")) == "<a><code>c</code></a>"
    assert markdown.coded("of `a*b`, * <c>") == "of `a*b`, \\* &lt;c&gt;"


def test_correlations_are_signed():
    assert correlation(Correlation(0.814, 0.6, 0.93)) == "+0.81 (+0.60 to +0.93)"
    assert correlation(Correlation(-0.001, None, None)) == "+0.00"
    assert correlation(None) == NONE


# The page


class Outline(HTMLParser):
    """The ids, the links within, the levels of the headings and what pictures say of themselves, in order."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.levels, self.pictures = [], [], [], []
        self.feed(re.sub("<svg.*?</svg>", "", text, flags=re.DOTALL))  # within figures, equal ids are equal shapes

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"][1:]] if found.get("href", "").startswith("#") else []
        self.levels += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        self.pictures += [found.get("alt")] if tag == "img" else []


LOOKED_AT = (
    "With few labels",
    "What it sees",
    "Nearest neighbours",
    "Test rows by their features",
    "Confusion:",
    "Effective rank against",
)


def test_what_was_not_recorded_leaves_no_trace(plain):
    assert not [heading for heading in LOOKED_AT if heading in plain]


def test_what_was_recorded_is_shown_for_every_entry(rich):
    assert rich.count("With few labels") == 1
    for heading in LOOKED_AT[1:-1]:
        assert rich.count(heading) == len(TABLE), heading
    assert rich.count("Effective rank against") == sum(seconds > 2 for *_, seconds in TABLE.values())
    assert rich.count(f"data:image/webp;base64,{WEBP}") == 2 * len(TABLE)


@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_links_lead_somewhere_and_headings_are_in_order(kind, request):
    outline = Outline(request.getfixturevalue(kind))
    ids = [page.quote(i) for i in outline.ids]
    assert len(set(ids)) == len(ids)
    assert set(outline.links) <= set(ids)
    assert f"image-{page.quote(HOSTILE)}" in outline.links
    assert outline.levels[0] == 1
    assert all(after <= before + 1 for before, after in zip(outline.levels, outline.levels[1:], strict=False))
    assert all(outline.pictures)  # each says what it shows


def test_the_summary_comes_first(plain):
    assert plain.index("By linear probe, simclr leads") < plain.index("How to read this") < plain.index('class="board"')


def test_equal_results_give_equal_bytes(rich_root, rich):
    assert rendered(rich_root) == rich


def test_text_stands_out_in_light_and_dark():
    """WCAG 2.1's contrast of 4.5 for text, on every ground that it stands on."""
    css = (page.TEMPLATES / "page.css.j2").read_text()
    colours = {name: (light, dark) for name, light, dark in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", css)}
    assert {"ink", "soft", "link", "warn", "paper", "tint"} <= colours.keys()
    for theme in (0, 1):
        for text in ("ink", "soft", "link", "warn"):
            for ground in ("paper", "tint"):
                assert contrast(colours[text][theme], colours[ground][theme]) >= 4.5, (text, ground, theme)


def contrast(one, other):
    """https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio"""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_contrast_of_black_and_white():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


# ---- When stages ran


def clocks(**runs):
    """Results of one modality, of runs given as ((pretraining's clock), (evaluation's clock)), None where not known."""

    def run(*stages):
        known = ({} if clock is None else {"clock": clock} for clock in stages)
        return Run(0, *known)

    made = [(SimpleNamespace(family=name), run(*stages)) for name, stages in runs.items()]
    return SimpleNamespace(modalities=[SimpleNamespace(name="image", runs=made)])


def test_a_schedule_leaves_idle_time_out():
    found = schedule(
        clocks(masked=((5000, 5120), (5150, 5180)), pretext=((1000, 1060), (1060, 1300)), clustering=(None, None))
    )
    bars = [(bar.lane, bar.family, bar.start, bar.end) for bar in found.bars]
    assert bars == [
        ("pretrain-image", "pretext", 0, 1),
        ("evaluate-image", "pretext", 1, 5),
        ("pretrain-image", "masked", 5, 7),  # after an idle hour
        ("evaluate-image", "masked", 7.5, 8),  # half a minute is not idle
    ]
    assert found.cuts == [5]
    assert found.minutes == 8


def test_a_run_within_another_ends_no_work():
    found = schedule(clocks(masked=((0, 600), None), pretext=((60, 120), (640, 700))))
    assert found.cuts == []
    assert found.minutes == pytest.approx(700 / 60)


def test_bars_of_seeds_side_by_side_do_not_cover_each_other():
    bars = [
        figures.Bar("pretrain-image", "masked", start, end) for start, end in ((0, 3), (0, 2), (1, 4), (2, 5), (3, 6))
    ]
    assert figures.packed(bars) == [0, 1, 2, 1, 0]
    drawn = figures.gantt(bars, [])
    heights = {tuple(re.findall(r"[-\d.]+ ([-\d.]+)", path)[:2]) for path in re.findall(r'd="(M [^"]*z)', drawn)}
    assert len(heights) >= 3  # three rows of bars


def test_no_clock_is_no_schedule(plain):
    assert schedule(clocks(masked=(None, None))).bars == []
    assert schedule(clocks(masked=((600, 300), None))).bars == []  # it was set back
    assert 'id="time"' not in plain


def test_the_page_shows_when_each_stage_ran(rich_root, rich):
    section = rich[rich.index('<section id="time"') :].split("</section>")[0]
    assert f"In all, {schedule(read(rich_root)).minutes:.0f} minutes." in section
    assert ">pretrain-image</text>" in section
    assert "more than a minute" in section
