"""Pictures with captions: data sets, two towers, the losses of CLIP and SigLIP and what they must learn, zero-shot."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from ssl_methods import Method, build_encoder
from ssl_methods.cross_modal.clip import SHARPEST
from ssl_methods.cross_modal.siglip import sigmoid_loss
from ssl_methods.modalities import image_text
from ssl_methods.parts.losses import info_nce
from stages import datasets
from stages.common.files import write_json
from stages.common.settings import Evaluation, Settings
from stages.datasets import Dataset
from stages.datasets.reading import captions
from stages.measures.protocol import evaluate
from stages.measures.retrieval import retrieval
from stages.training.loop import build_method
from tests.datasets.test_datasets import SPLITS, archive, joined, paint, refuses
from tests.methods.test_methods import FACTS, SMALL, batches_of, small, trained_on

ENCODER = SMALL["ImageText"]


def said(dataset: Dataset, ids: np.ndarray) -> list[str]:
    """What rows of ids say."""
    return Tokenizer.from_str(dataset.files["tokenizer.json"]).decode_batch(ids.tolist())


# Emoji and their names


@pytest.fixture(scope="module")
def emoji_names() -> Dataset:
    return datasets.load("emoji_names", size=8)


def test_emoji_names_are_the_same_pictures_as_emoji(emoji_names):
    emoji = datasets.load("emoji", size=8)
    assert emoji_names.classes == emoji.classes
    assert emoji_names.show == emoji.show
    for split in SPLITS:
        for name, column in emoji.splits[split].items():
            assert np.array_equal(emoji_names.splits[split][name], column)


def test_no_name_of_an_emoji_is_in_two_splits(emoji_names):
    names = [{ids.tobytes() for ids in emoji_names.splits[split]["token"]} for split in SPLITS]
    assert [len(of) for of in names] == [1256, 272, 276]
    assert len(set().union(*names)) == sum(map(len, names))


def test_an_emoji_has_its_own_name(emoji_names):
    test = emoji_names.splits["test"]
    found = said(emoji_names, test["token"])
    assert {"polar bear", "toothbrush", "older woman"} <= set(found)
    of_concept = {}
    for concept, name in zip(test["concept"].tolist(), found, strict=True):
        assert of_concept.setdefault(concept, name) == name  # all vendors draw the same thing
    assert (joined(emoji_names, "token") == 4).any(1).mean() < 0.002  # with a character that train has not


def test_every_group_of_emoji_has_prompts(emoji_names):
    prompts = dict(zip(said(emoji_names, emoji_names.prompts["token"]), emoji_names.prompts["label"], strict=True))
    names = [emoji_names.classes[label] for label in (prompts["food, drink"], prompts["animal bird"])]
    assert names == ["Food & Drink", "Animals & Nature"]
    assert len(prompts) == 9 + 99
    by_subgroup = datasets.load("emoji_names", size=8, label="subgroup")
    assert len(by_subgroup.prompts["label"]) == len(by_subgroup.classes) == 99


# Folders of one's own


def table(path: Path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        lines = ["file_name,text", *(f'{name},"{text}"' for name, text in rows)]
    else:
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """20 red squares that are cats and 20 green ones that are dogs, captioned in one table."""
    folder, rows = tmp_path / "mine", []
    for n in range(20):
        paint(folder / "red_cat" / f"{n:02}.png", (100 + n, 0, 0))
        paint(folder / "green-dog" / f"{n:02}.png", (0, 255 - n, 0))
        rows += [(f"red_cat/{n:02}.png", f"a red cat, number {n}"), (f"green-dog/{n:02}.png", f"green dog {n}")]
    table(folder / "captions.csv", rows)
    return folder


def test_a_caption_stays_with_its_picture(root):
    data = datasets.load("caption_folder", root=str(root), size=8)
    assert data.classes == ["green-dog", "red_cat"]
    assert not data.skipped
    for split in SPLITS:
        columns = data.splits[split]
        for ids, picture, label in zip(said(data, columns["token"]), columns["image"], columns["label"], strict=True):
            red, green, _ = picture[:, 0, 0]
            kind, number = ids.rsplit(" ", 1)
            assert (kind, label) == (("a red cat, number", 1) if red else ("green dog", 0))
            assert int(number) == (red - 100 if red else 255 - green)
    assert said(data, data.prompts["token"]) == ["green dog", "red cat"]
    assert data.prompts["label"].tolist() == [0, 1]


def test_an_archive_and_tables_of_json_read_the_same(root, tmp_path):
    folder = datasets.load("caption_folder", root=str(root), size=8)
    packed = datasets.load("caption_folder", root=str(archive(tmp_path / "mine.zip", root)), size=8)
    (root / "captions.csv").unlink()
    for kind, name in (("red_cat", "a red cat, number"), ("green-dog", "green dog")):  # relative to the table
        table(root / kind / "metadata.jsonl", [(f"{n:02}.png", f"{name} {n}") for n in range(20)])
    listed = datasets.load("caption_folder", root=str(root), size=8)
    for other in (packed, listed):
        assert other.files == folder.files
        for split in SPLITS:
            assert all(
                np.array_equal(column, other.splits[split][name]) for name, column in folder.splits[split].items()
            )


def test_all_captions_of_a_picture_are_rows_in_one_split(root):
    rows = [(f"green-dog/{n:02}.png", f"view {view} of {n}") for n in range(20) for view in range(3)]
    table(root / "more.jsonl", rows)
    data = datasets.load("caption_folder", root=str(root), size=8, seed=3)
    assert sum(len(data.splits[split]["image"]) for split in SPLITS) == 20 + 4 * 20
    pictures = [set(data.splits[split]["picture"].tolist()) for split in SPLITS]
    assert sum(map(len, pictures)) == len(set().union(*pictures)) == 40
    dogs = data.splits["train"]["label"] == 0
    _, counts = np.unique(data.splits["train"]["picture"][dogs], return_counts=True)
    assert (counts == 4).all()


def test_what_has_no_counterpart_is_skipped_and_listed(root):
    (root / "green-dog/03.png").write_bytes(b"no picture")
    paint(root / "green-dog/lonely.png")
    with (root / "captions.csv").open("a", encoding="utf-8") as file:
        file.write("\ngreen-dog/gone.png,a dog that is not there\n../../secret.png,elsewhere\ngreen-dog/04.png, -- ")
    data = datasets.load("caption_folder", root=str(root), size=8, tolerate=0.2)
    assert data.skipped == [
        "captions.csv, line 42 (a caption without a picture: 'green-dog/gone.png')",
        "captions.csv, line 43 (a caption without a picture: '../../secret.png')",
        "captions.csv, line 44 (an empty caption)",
        "green-dog/03.png (not a picture)",
        "green-dog/lonely.png (no caption)",
    ]
    assert sum(len(data.splits[split]["image"]) for split in SPLITS) == 39
    message = refuses(datasets.load, "caption_folder", root=str(root), size=8)
    assert "5 of 44 files" in message
    assert "`tolerate`" in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "captions.csv",
            b"picture,words\ngreen-dog/01.png,a dog\n",
            ["line 2", "`file_name` and `text`", "picture, words"],
        ),
        ("captions.csv", b"file_name,text\ngreen-dog/01.png\n", ["line 2", "`file_name` and `text`"]),
        (
            "captions.csv",
            "file_name,text\ngreen-dog/01.png,\u00e9t\u00e9".encode("latin-1"),
            ["captions.csv is not UTF-8"],
        ),
        ("captions.csv", b"file_name,text\ngreen-dog/01.png," + b"x" * 200_000, ["not CSV"]),
        ("captions.jsonl", b'{"file_name": "green-dog/01.png", "text": "a dog"}\n{"file_name"', ["line 2", "not JSON"]),
        ("captions.jsonl", b"[" * 100_000, ["line 1", "not JSON"]),
        ("captions.jsonl", b'["green-dog/01.png", "a dog"]', ["line 1", "neither"]),
        ("captions.jsonl", b'{"file_name": "green-dog/01.png", "text": 7}', ["line 1", "`file_name` and `text`"]),
        ("captions.csv", b"", ["no pictures with captions"]),
        ("captions.txt", b"green-dog/01.png a dog", ["no table of captions", "add one"]),
    ],
)
def test_a_table_that_cannot_be_read_is_named(root, name, content, expected):
    (root / "captions.csv").unlink()
    (root / name).write_bytes(content)
    message = refuses(datasets.load, "caption_folder", root=str(root), size=8)
    assert message.startswith("data set caption_folder: ")
    assert all(part in message for part in expected)


def test_captions_without_classes_have_no_prompts(root):
    rows = [(f"{n}.png", f"number {n}") for n in range(30)]
    plain = root.parent / "plain"
    for name, _ in rows:
        paint(plain / name, (len(name) * 40, 0, 0))
    table(plain / "captions.jsonl", rows)
    data = datasets.load("caption_folder", root=str(plain), size=8)
    assert (data.classes, data.prompts) == ([], None)
    assert "label" not in data.splits["train"]


# Losses


@pytest.fixture
def towers() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 5, requires_grad=True), torch.randn(6, 5, requires_grad=True)


def test_sigmoid_loss_is_the_slow_one_and_so_is_its_gradient(towers):
    v, t = towers
    slope, offset = torch.tensor(3.0, requires_grad=True), torch.tensor(-1.5, requires_grad=True)
    total = 0.0
    for i in range(6):
        for j in range(6):
            z = 1 if i == j else -1
            total = total - torch.log(
                1 / (1 + torch.exp(-z * (slope * F.cosine_similarity(v[i], t[j], dim=0) + offset)))
            )
    found = sigmoid_loss(v, t, slope, offset)
    torch.testing.assert_close(found, total / 6)
    wanted = torch.autograd.grad(total / 6, (v, t, slope, offset))
    for ours, theirs in zip(torch.autograd.grad(found, (v, t, slope, offset)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_sigmoid_loss_of_what_is_alike_and_of_what_is_told_apart():
    a, b = torch.tensor(10.0), torch.tensor(-10.0)
    one = math.log(1 + math.exp(0))  # a + b = 0: each of the six pairs of a row is a coin
    assert sigmoid_loss(torch.ones(6, 4), torch.ones(6, 4), a, b).item() == pytest.approx(6 * one)
    apart = sigmoid_loss(torch.eye(6), torch.eye(6), torch.tensor(40.0), torch.tensor(-20.0))
    assert apart.item() == pytest.approx(6 * math.log1p(math.exp(-20)), rel=1e-3)


def test_clips_loss_is_the_slow_one(params, pictures, sentences):
    method = build_method(small(params.entry("image_text", "clip"), strength=0.0), FACTS, seed=0).eval()
    batch = next(batches_of({"image": pictures, "token": sentences["token"]}, 1))
    v, t = method.encoder(batch["image"] / 255, batch["token"])
    expected = 0.0
    for i in range(8):
        s = [F.cosine_similarity(v[i], t[j], dim=0) / 0.07 for j in range(8)]
        r = [F.cosine_similarity(t[i], v[j], dim=0) / 0.07 for j in range(8)]
        expected -= (s[i] - torch.stack(s).logsumexp(0) + r[i] - torch.stack(r).logsumexp(0)) / 16
    loss, extras = method(batch)
    torch.testing.assert_close(loss, expected)
    assert extras["temperature"].item() == pytest.approx(0.07)
    torch.testing.assert_close(
        info_nce(torch.ones(8, 3), torch.ones(8, 3), torch.tensor(0.07)), torch.tensor(math.log(8))
    )


def test_clips_temperature_is_learned_and_stops_at_a_hundredth(params, pictures, sentences, tmp_path):
    rows = {"image": pictures, "token": sentences["token"]}
    method, curve = trained_on(rows, small(params.entry("image_text", "clip"), temperature=0.01), tmp_path, 20, lr=0.1)
    assert method.scale.item() <= SHARPEST + 1e-6
    assert min(point["temperature"] for point in curve) == pytest.approx(0.01, abs=1e-6)
    _, curve = trained_on(rows, small(params.entry("image_text", "clip")), tmp_path, 20)
    assert curve[-1]["temperature"] != pytest.approx(0.07, abs=1e-4)


# What they must learn


@pytest.fixture(scope="module")
def coloured() -> dict[str, Tensor]:
    """Discs whose captions name their colour and their place: 4 x 4 captions, 16 pictures of each, (256, ...)."""
    generator = torch.Generator().manual_seed(0)
    colour, place = torch.arange(256) % 4, torch.arange(256) // 4 % 4
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    centre = torch.tensor([[4.0, 4.0], [4.0, 11.0], [11.0, 4.0], [11.0, 11.0]])[place]
    disc = ((y - centre[:, :1, None]) ** 2 + (x - centre[:, 1:, None]) ** 2 < 12).float()[:, None]  # (N, 1, H, W)
    paint = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])[colour][:, :, None, None]
    noise = torch.rand(256, 3, 16, 16, generator=generator) * 80
    token = torch.zeros(256, 12).int()
    token[:, :4] = torch.stack([torch.ones(256), 5 + colour, 15 + place, torch.full((256,), 2)], 1).int()
    return {"image": (noise + 170 * disc * paint).to(torch.uint8), "token": token, "label": colour}


@pytest.fixture(scope="module", params=["clip", "siglip"])
def taught(request, params: Settings, coloured, tmp_path_factory) -> Method:
    folder = tmp_path_factory.mktemp(request.param)
    method, _ = trained_on(coloured, small(params.entry("image_text", request.param), strength=0.0), folder, 400)
    return method.eval()


def test_it_finds_pictures_by_captions_and_captions_by_pictures(taught, params, coloured):
    untrained = build_method(small(params.entry("image_text", "untrained")), FACTS, seed=0).eval()

    def found(method: Method) -> dict[str, dict[str, float]]:
        with torch.no_grad():
            sought = image_text.partners(image_text.embed(method.encoder, coloured), coloured)
        return {name: retrieval(**parts) for name, parts in sought.items()}

    guessed, found = found(untrained), found(taught)
    assert list(found) == ["image to text", "text to image"]
    for way, scores in found.items():
        assert scores["chance_r1"] == pytest.approx(100 / 16)
        assert scores["r1"] > 60 > guessed[way]["r1"]


def test_it_tells_classes_by_names_it_was_never_told_to_be_classes(taught, coloured, tmp_path):
    """Zero-shot, through evaluation itself, from weights on disk."""
    folder, models = tmp_path / "data", tmp_path / "models"
    names = torch.zeros(4, 12).int()
    names[:, :3] = torch.tensor([[1, 5 + colour, 2] for colour in range(4)]).int()
    prompts = {"token": names, "label": torch.arange(4)}
    for part, columns in {**dict.fromkeys(SPLITS, coloured), "prompts": prompts}.items():
        (folder / part).mkdir(parents=True)
        for column, values in columns.items():
            np.save(folder / part / f"{column}.npy", values.numpy())
    splits = {split: {"rows": 256} for split in SPLITS}
    facts = {name: FACTS[name] for name in ("size", "vocabulary", "length")}
    write_json(folder / "manifest.json", {"data": "mine", "classes": list("rgby"), "facts": facts, "splits": splits})
    models.mkdir()
    save_file({k: v.contiguous() for k, v in taught.encoder.state_dict().items()}, models / "encoder.safetensors")
    write_json(models / "status.json", {"status": "ok", "step": None, "cause": None})

    protocol = Evaluation(strengths=[1e-2], neighbours=[5], device="cpu")
    found = evaluate(models, folder, "image_text", ENCODER, protocol)
    assert found["linear"] > 90
    assert found["zero_shot"] == {"accuracy": pytest.approx(100, abs=20), "majority": 25.0}
    assert found["retrieval"]["image to text"]["r1"] > 60


def test_an_encoder_of_pictures_alone_is_not_asked_for_text(pictures, sentences):
    encoder = build_encoder(SMALL["ResNet"], FACTS).eval()
    rows = {"image": pictures[:8], "token": sentences["token"][:8]}
    towers = image_text.embed(encoder, rows)
    assert list(towers) == ["image"]
    assert image_text.partners(towers, rows) == {}
    assert image_text.named(encoder, towers, {"token": sentences["token"][:2]}) is None


def test_partners_share_a_caption():
    h = torch.arange(8.0).view(4, 2)
    towers = {"image": {"shared": h, "last": h * 0}, "text": {"shared": -h, "last": h * 0}}
    rows = {"token": torch.tensor([[1, 9, 2], [1, 7, 2], [1, 9, 2], [1, 8, 2]])}
    found = image_text.partners(towers, rows)
    there, back = found["image to text"], found["text to image"]
    assert there["queries"].equal(h)
    assert there["gallery"][there["names"] == there["wanted"][2]].tolist() == [[0, -1]]  # the first of its kind
    assert len(there["gallery"]) == len(back["queries"]) == 3
    assert back["gallery"].equal(h)
    assert (back["names"] == back["wanted"][:, None]).sum(1).tolist() == [1, 1, 2]  # captions are in sorted order


def test_the_view_is_a_square_of_most_of_the_picture(pictures):
    torch.manual_seed(0)
    x = pictures.float() / 255
    assert image_text.view(x, 0.0) is x
    near, far = ((image_text.view(x, strength) - x).square().mean().item() for strength in (1.0, 8.0))
    assert 0 < near < far


def test_the_vocabulary_is_learned_from_trains_captions_alone():
    splits = {split: {"image": np.zeros((1, 3, 4, 4), np.uint8)} for split in SPLITS}
    rows = {split: np.array([n]) for n, split in enumerate(SPLITS)}
    data = captions.add_captions(Dataset(splits, [], {}), ["abc abc", "xyz", "cab"], rows, [], length=8, vocabulary=60)
    assert data.splits["validation"]["token"][0, 1] == 4  # unknown
    assert 4 not in data.splits["test"]["token"]
