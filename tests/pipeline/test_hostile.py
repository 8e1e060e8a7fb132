"""Files that are broken, or made to do harm: each ends in one clear line or in a skip that is counted.

Never a crash, a hang, a write outside the project, or code that a file brings with it. Cases are made by damaging good
files and by saying absurd things in good form. `HOSTILE_CASES=1000 pytest tests/test_hostile.py -s` tries as many of
each kind, new ones every time, and says how many ended how; otherwise it is a few, always the same.
"""

import copy
import io
import json
import math
import os
import pickle
import signal
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from ssl_methods import build_encoder
from stages import plan
from stages.common import settings
from stages.common.settings import InputError
from stages.measures import frozen
from stages.prepare import prepare
from stages.reporting import results
from stages.sweeping import study as sweep
from stages.training import checkpoint
from stages.training.columns import Columns, facts_of, manifest
from tests.datasets.test_video_audio_data import film
from tests.reporting.test_report import write_results
from tests.sweeping.test_sweep import objective, search

MANY = int(os.environ.get("HOSTILE_CASES", 0))  # of each kind; 0 for the few of a usual run
PATIENCE = 20  # seconds until a case counts as hanging
CPU = torch.device("cpu")
ENDED: Counter[tuple[str, str]] = Counter()  # (kind of case, how it ended)


def cases(few: int, share: float = 1.0) -> Callable:
    """How many cases a test tries: `few`, or that share of HOSTILE_CASES where they are slow."""
    return profile(
        max_examples=max(round(MANY * share), 1) if MANY else few,
        derandomize=not MANY,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # not shrunk: that takes far longer than to find
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    yield
    if MANY:
        print(f"\n{sum(ENDED.values())} hostile cases")
        for (kind, how), count in sorted(ENDED.items()):
            print(f"  {kind:12} {how:10} {count}")


@contextmanager
def sandbox() -> Iterator[Path]:
    """An empty project to work in. Whatever appears beside it was written outside."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as around:
        inside = Path(around, "project")
        inside.mkdir()
        os.chdir(inside)
        try:
            yield inside
        finally:
            os.chdir(before)
        assert os.listdir(around) == ["project"]
        assert not list(inside.rglob("*pwned*"))


def ends_well(kind: str, work: Callable[[], Any]) -> Any:
    """What `work` returns, or the one line that it is refused with. Any other exception, or a hang, is a fault."""

    def give_up(*_: object) -> None:
        pytest.fail(f"hangs for {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        found, how = work(), "accepted"
    except InputError as error:
        found, how = str(error), "refused"
        assert len(found.splitlines()) == 1, found
        assert len(found) < 20_000
        found.encode()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    ENDED[kind, how] += 1
    return found


# ---- Damage


TOKENS = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\x1b[31m",
        b"\n",
        b"\r",
        b"\x85",
        b'"',
        b"'",
        b"{",
        b"[",
    ),
    *(
        b"&a [*a]",
        b"*a",
        b"<<: ",
        b"!!python/object/apply:os.system [touch pwned]",
        b"2001-99-99",
        b"9" * 5000,
        b".nan",
    ),
    *(
        b"-1",
        b"1e999",
        b"NaN",
        b"Infinity",
        b"../../pwned",
        b"/pwned",
        b"\\..\\",
        b"<script>",
        b"PK\x01\x02",
        b"PK\x05\x06",
    ),
    *(b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00", b"[" * 3000, b"!" * 3000, b"\\ud800"),
)


@st.composite
def damaged(draw: st.DrawFn, *good: bytes) -> bytes:
    """One of the good files, with one to four things done to it; now and then no such file at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.sampled_from([b"", *TOKENS]) | st.binary(max_size=300))
    content = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([1, 2, 4, 16, 256, 2**30])))
        what = draw(st.integers(0, 5))
        if what == 0 and start < len(content):
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif what == 1:
            del content[start:end]
        elif what == 2:
            content[start:start] = content[start:end][:4096] * draw(st.integers(1, 9))
        elif what == 3:
            content[start:start] = draw(st.sampled_from(TOKENS))
        elif what == 4:
            content[start:end] = draw(st.binary(max_size=16))
        else:
            token = draw(st.sampled_from(TOKENS))
            content[start : start + len(token)] = token
    return bytes(content)


ODD = (
    *("", " ", "..", "../../pwned", "/tmp/pwned", "a/b", "a\nb", "a\0b", "\x1b[2J", "\ud800", "\udcff", "x" * 5000),
    *("é", "<script>", "$(touch pwned)"),
    *( "; touch pwned", "~nobody-at-all/x", "-rf", "simclr", "label", "__class__", "null"),
)  # fmt: skip
TEXTS = st.text(max_size=5) | st.sampled_from(ODD)
NUMBERS = st.sampled_from(
    [0, 1, -1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf]
)
SINGLE = st.none() | st.booleans() | NUMBERS | TEXTS
ABSURD = (
    SINGLE | st.lists(SINGLE, max_size=3) | st.dictionaries(TEXTS, SINGLE, max_size=3) | st.builds(lambda: [[[[[[]]]]]])
)


@st.composite
def twisted(draw: st.DrawFn, good: Any) -> Any:
    """A tree of mappings and lists in which one or two values, or keys, are others."""
    tree = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 2))):
        place: Any = {"": tree}
        key: Any = ""
        while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 4)):
            place = place[key]
            key = draw(st.sampled_from(sorted(place, key=repr) if isinstance(place, dict) else range(len(place))))
        what = draw(st.integers(0, 3))
        if what == 0 and isinstance(place, dict) and place is not tree:
            place.pop(key)
        elif what == 1 and isinstance(place[key], dict):
            place[key][draw(SINGLE)] = draw(ABSURD)
        elif what == 2 and isinstance(place, dict) and key != "":
            place[draw(TEXTS)] = place.pop(key)
        else:
            place[key] = draw(ABSURD)
        if key == "":
            tree = place.get("")
    return tree


# ---- params.yaml


ROOT = Path(__file__).parents[2]


def small_params() -> dict[str, Any]:
    """This repository's settings, with a row or two of each kind."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["benchmark"] = {
        "image": {"data": "image_folder", "training": "laptop", "methods": ["simclr", "mae"], "sweeps": ["simclr"]}
    }
    params["datasets"] = {"image_folder": {"root": "pictures", "size": 32}}
    params["training"] = {"laptop": params["training"]["laptop"] | {"override": {"simclr": {"strength": 0.5}}}}
    params["encoders"] = {name: params["encoders"][name] for name in ("small_resnet", "vit")}
    params["methods"] = {"simclr": {"temperature": 0.2}, "mae": {"encoder": "vit"}}
    return params


PARAMS = small_params()


def plan_of(content: bytes | str) -> Any:
    """What params.yaml comes to, as the stage `plan` checks it."""
    content = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    with sandbox() as folder:
        path = folder / "params.yaml"
        path.write_bytes(content)
        return ends_well("params", lambda: json.dumps(plan.settings_of(settings.read(path)), allow_nan=False))


@cases(100)
@given(damaged(yaml.safe_dump(PARAMS).encode()))
@example(b"seeds: !!python/object/apply:os.system [touch pwned]")
@example(b"seeds: 2001-99-99")
@example(b"seeds: !!int")
@example(b"seeds: \x00")
@example(b"[" * 5000)
@example(b"seeds: " + b"9" * 5000)
@example(b"a: &a [*a]")
@example(
    b"\n".join(
        [b"a0: &a0 [x]"] + [b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 10)]
    )
)
def test_damaged_params(content):
    plan_of(content)


@cases(200)
@given(twisted(PARAMS))
def test_absurd_params(tree):
    plan_of(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("methods.simclr", {"method": ["simclr"]}, "methods.simclr.method: input should be a valid string"),
        ("methods.mae", {"encoder": None}, "methods.mae.encoder: input should be a valid string"),
        (
            "methods.simclr",
            {"temperature": "1e999"},
            "methods.simclr.temperature: expected a number of a sensible size",
        ),
        ("encoders.vit.architecture", 3, "encoders.vit.architecture: input should be a valid string"),
        ("training.laptop.epochs", math.inf, "training.laptop.epochs: expected a number of a sensible size"),
        ("evaluation.low_label.share", 1, "evaluation.low_label.share: unknown key 'share'; did you mean 'shares'?"),
        ("methods", {1: {}}, "methods: the key 1 is no text"),
        ("training", {"\udcff": PARAMS["training"]["laptop"]}, "known: ?"),
        ("seeds", [-1], "seeds.0: input should be greater than or equal to 0"),
        ("seeds", [2**40], "seeds.0: input should be less than"),
    ],
)
def test_what_was_mended_in_params(key, value, says):
    params = copy.deepcopy(PARAMS)
    *parents, last = key.split(".")
    block = params
    for parent in parents:
        block = block[parent]
    block[last] = value
    assert says in plan_of(yaml.safe_dump(params))


@pytest.mark.parametrize("name", ["../../pwned", "/pwned", "a; touch pwned", "$(touch pwned)", "-m", "a\nb", ""])
def test_names_become_folders_and_commands_and_so_are_plain(name):
    """`dvc repro` puts an entry's name into a path and a command line."""
    params = copy.deepcopy(PARAMS)
    params["methods"][name] = {"method": "simclr"}
    params["benchmark"]["image"]["methods"].append(name)
    assert "make it of letters" in plan_of(yaml.safe_dump(params))
    params = copy.deepcopy(PARAMS)
    params["benchmark"][name] = params["benchmark"].pop("image")
    assert "unknown modality" in plan_of(yaml.safe_dump(params))


# ---- Data of one's own


def png(n: int, **options: Any) -> bytes:
    return encoded("PNG", n, **options)


def encoded(kind: str, n: int = 0, size: tuple[int, int] = (12, 9), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (n, 9 * n % 256, 200)).save(file, kind, **options)
    return file.getvalue()


def prepared(kind: str, data: str, files: dict[str, bytes], root: str = "mine", **given: Any) -> Any:
    """What the stage `prepare` makes of these files, in a project of its own."""
    with sandbox() as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        found = ends_well(kind, lambda: prepare(data, {"root": root, **given}, folder / "data"))
        assert (folder / "data").exists() == isinstance(found, dict)
        if isinstance(found, dict):
            json.dumps(found).encode()
            for name in found["classes"]:
                assert name.encode().decode() == name
                assert "\n" not in name
        return found


GOOD = {f"mine/{label}/{n}.png": png(n + 9 * (label == "b")) for n in range(5) for label in "ab"}
PICTURES = [
    *(encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")),
    *(encoded("TIFF", compression=how) for how in ("tiff_lzw", "jpeg", "tiff_deflate")),
    encoded("JPEG", exif=Image.Exif().tobytes(), quality=20),
]


@cases(60)
@given(damaged(*PICTURES), st.sampled_from([".png", ".JPG", ".tif", ".gif", ".webp"]))
def test_damaged_pictures(content, ending):
    """Such a picture is read or skipped, and counted; the others are not lost."""
    found = prepared("picture", "image_folder", GOOD | {f"mine/a/odd{ending}": content}, size=8, tolerate=0.5)
    assert sum(split["rows"] for split in found["splits"].values()) + found["skipped_count"] == 11


NAMES = (
    *("a/5.png", "a/0.png", "../pwned.png", "/pwned.png", "a/../../pwned.png", "..\\pwned.png", "C:\\pwned.png"),
    *("a//6.png", "./a/7.png"),
    *("a/\udcff.png", "\n\x1b[2J/8.png", "train/9.png", "c/.png", "x/" * 200 + "y.png", "a", "a/"),
    *(".png", "<script>/1.png", "\u2028/1.png", "z" * 3000 + "/1.png", "a/\0.png"),
)  # fmt: skip
LINK, PIPE = (0o120777 << 16), (0o010666 << 16)


@st.composite
def odd_archives(draw: st.DrawFn) -> bytes:
    """A .zip with good pictures, and some members that lie, collide, lead away or explode."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in GOOD.items():
            packed.writestr(name.removeprefix("mine/"), content, draw(st.sampled_from([0, 8])))
        for _ in range(draw(st.integers(1, 4))):
            member = zipfile.ZipInfo("x")
            member.filename = draw(st.sampled_from(NAMES))
            member.create_system, member.external_attr = 3, draw(st.sampled_from([0, 0, LINK, PIPE]))
            member.compress_type = draw(st.sampled_from([0, 8, 8, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
            content = draw(st.sampled_from([b"", PICTURES[0], bytes(3 * 2**20), b"../../pwned"]))
            try:
                with warnings.catch_warnings(action="ignore"):  # of names that are there twice
                    packed.writestr(member, content)
            except UnicodeEncodeError:  # such a name no zip can have
                continue
            member.file_size = draw(st.sampled_from([member.file_size] * 3 + [0, 1, 2**28, 2**31]))
            member.flag_bits |= draw(st.sampled_from([0, 0, 0, 1, 0x800]))
    return file.getvalue()


@cases(50)
@given(odd_archives())
def test_odd_archives(content):
    prepared("zip", "image_folder", {"mine.zip": content}, "mine.zip", size=8, tolerate=0.5)


ARCHIVE = io.BytesIO()
with zipfile.ZipFile(ARCHIVE, "w", 8) as good_archive:
    for good_name, good_content in GOOD.items():
        good_archive.writestr(good_name, good_content)


@cases(50)
@given(damaged(ARCHIVE.getvalue()))
@example(b"PK\x05\x06" + bytes(18))
@example(b"PK\x05\x06" + b"\xff" * 18)
def test_damaged_archives(content):
    prepared("zip", "image_folder", {"mine.zip": content}, "mine.zip", size=8, tolerate=0.9)


def packed_lying(kind: int, size: int, claimed: int) -> bytes:
    """An archive of `GOOD` and a file of so many zeros that claims to unpack to less."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in GOOD.items():
            packed.writestr(name, content)
        member = zipfile.ZipInfo("mine/a/bomb.png")
        member.compress_type = kind
        packed.writestr(member, bytes(size))
        member.file_size = claimed
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "claimed", "reason"),
    [
        (zipfile.ZIP_BZIP2, 9, "packed in an unusual way"),
        (zipfile.ZIP_LZMA, 9, "packed in an unusual way"),
        (zipfile.ZIP_DEFLATED, 2**24, "too large"),
    ],
)
def test_a_zip_bomb_is_not_unpacked(kind, claimed, reason):
    """Python unpacks bzip2 and LZMA whole, however little a file claims to hold."""
    content = packed_lying(kind, 2**24, claimed)
    found = prepared("zip", "image_folder", {"mine.zip": content}, "mine.zip", size=8, tolerate=0.5)
    assert found["skipped"] == [f"mine/a/bomb.png ({reason})"]


def test_an_archive_whose_files_overlap_is_refused():
    """As in the bombs that unpack to petabytes: every name leads to the same packed bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", 8) as packed:
        packed.writestr("a/0.png", os.urandom(2**16))
        (member,) = packed.infolist()
        for n in range(1, 9):
            again = copy.copy(member)
            again.filename = f"a/{n}.png"
            packed.filelist.append(again)
    assert "files overlap" in prepared("zip", "image_folder", {"mine.zip": file.getvalue()}, "mine.zip")


@pytest.mark.parametrize("root", ["a\0b", "~nobody-at-all/x", "x" * 5000, "\ud800", "/dev/null", "/proc/self/mem"])
def test_a_root_that_no_file_can_have(root):
    assert "set datasets" in (text := prepared("root", "image_folder", {}, root)) or "unpack" in text


def test_links_and_names_in_a_folder():
    with sandbox() as folder:
        for name, content in GOOD.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / "mine/a/etc.png").symlink_to("/etc/passwd")
        (folder / "mine/a/self.png").symlink_to("self.png")
        (folder / "mine/a/\x1b[2J\n.png").write_bytes(b"")
        os.mkfifo(folder / "mine/a/pipe.png")
        os.rename(folder / "mine/b", os.fsencode(folder / "mine") + b"/\xff\n<script>")
        found = ends_well("link", lambda: prepare("image_folder", {"root": "mine", "tolerate": 0.5}, folder / "data"))
    assert found["classes"] == ["? <script>", "a"]
    assert found["skipped_count"] == 4
    assert all("\n" not in line and "\x1b" not in line for line in found["skipped"])


# ---- Text and captions


TEXT = (
    "One sentence. Another, of Mr. Smith's: \u201cnice\u201d! And a third?\nA line of its own \u00e9\u00e8.\n".encode()
)


@cases(80)
@given(st.lists(damaged(TEXT, TEXT.decode().encode("utf-16"), b"x" * 9000 + b"." * 9000), min_size=1, max_size=3))
@example([b"!" * 200_000])
@example([b'."' * 100_000])
@example([b". " * 100_000 + b"a"])
@example([b"a" * 200_000])
def test_damaged_texts(contents):
    files = {f"mine/{label}/{n}.txt": TEXT + f"{label}{n}".encode() for label in "ab" for n in range(4)}
    files |= {f"mine/a/odd{n}.txt": content for n, content in enumerate(contents)}
    prepared("text", "text_folder", files, vocabulary=500, tolerate=0.5)


ROWS = [(f"{label}/{n}.png", f"the picture {n} of {label}") for n in range(5) for label in "ab"]
CSV = "\n".join(["file_name,text", *(f"{name},{text}" for name, text in ROWS)]).encode()
JSONL = "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in ROWS).encode()


@cases(80)
@given(damaged(CSV, JSONL), st.sampled_from(["c.csv", "c.jsonl", "a/c.csv", "a\n.csv", "x.CSV"]), st.booleans())
@example(JSONL + b'\n{"file_name": "a/0.png", "text": "\\ud800 x"}', "c.jsonl", False)
@example(b'{"a": ' * 100_000, "c.jsonl", False)
@example(b'"' + b"a" * 200_000, "c\n.csv", False)
@example(b"\xff", "c\n.csv", False)
def test_damaged_captions(content, name, packed):
    files = GOOD | {f"mine/{name}": content}
    if packed:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as into:
            for member, inside in files.items():
                into.writestr(member, inside)
        files = {"mine": file.getvalue()}
    prepared("captions", "caption_folder", files, size=8, vocabulary=500, tolerate=0.9)


@cases(60)
@given(st.lists(st.fixed_dictionaries({"file_name": ABSURD | st.just("a/0.png"), "text": ABSURD}), max_size=4))
def test_absurd_captions(rows):
    lines = [json.dumps(row) for row in rows]
    content = JSONL + "\n".join(["", *lines]).encode()
    prepared("captions", "caption_folder", GOOD | {"mine/c.jsonl": content}, size=8, vocabulary=500, tolerate=0.9)


def test_a_table_in_a_damaged_archive_is_named():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in (GOOD | {"mine/c.csv": CSV}).items():
            packed.writestr(name, content)
    content = file.getvalue().replace(b"the picture 3", b"the picturf 3")
    assert "c.csv cannot be read" in prepared("captions", "caption_folder", {"mine.zip": content}, "mine.zip")


# ---- Clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, bytes]:
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("clips")
    return {ending: film(folder / f"x{ending}").read_bytes() for ending in (".mp4", ".mkv", ".avi")}


@cases(12, share=0.3)
@given(data=st.data())
def test_damaged_clips(clips, data):
    ending = data.draw(st.sampled_from(sorted(clips)))
    content = data.draw(damaged(clips[ending]))
    files = {f"mine/{n}.mp4": clips[".mp4"] for n in range(3)} | {f"mine/odd{ending}": content}
    prepared("clip", "video_folder", files, size=8, frames=2, rate=8000, validation=0.3, test=0.3, tolerate=0.5)


def test_a_clip_that_lasts_for_ever_by_its_own_account(tmp_path):
    """It is read for as long as its sound lasts, or skipped, and in no more time than others."""
    av = pytest.importorskip("av")
    content = film(tmp_path / "x.mkv")
    late = tmp_path / "late.mkv"
    with av.open(content) as source, av.open(late, "w") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        packets = [packet for packet in source.demux() if packet.dts is not None]
        last = max((p for p in packets if p.stream.type == "video"), key=lambda p: p.pts)
        for packet in packets:
            if packet is last:
                packet.pts = packet.dts = packet.pts + 10**8 * round(1 / packet.time_base)
            packet.stream = streams[packet.stream.index]
            out.mux(packet)
    files = {f"mine/{n}.mkv": content.read_bytes() for n in range(4)} | {"mine/late.mkv": late.read_bytes()}
    given = {"size": 8, "frames": 2, "rate": 8000, "validation": 0.3, "test": 0.3}
    found = prepared("clip", "video_folder", files, **given, tolerate=0.5)
    assert isinstance(found, dict), found


# ---- What stages leave for one another


MANIFEST = {
    "data": "small",
    "classes": ["a", "b"],
    "facts": {"size": 16},
    "hash": "0" * 64,
    "splits": {"train": {"rows": 256, "columns": {"image": {"dtype": "uint8", "shape": [256, 3, 16, 16]}}}},
}


def read_manifest(content: bytes) -> None:
    with sandbox() as folder:
        (folder / "manifest.json").write_bytes(content)
        ends_well("manifest", lambda: facts_of(manifest(folder)))


@cases(100)
@given(damaged(json.dumps(MANIFEST).encode()))
@example(b"[" * 100_000)
@example(b"9" * 5000)
def test_damaged_manifests(content):
    read_manifest(content)


@cases(100)
@given(twisted(MANIFEST))
def test_absurd_manifests(tree):
    read_manifest(json_of(tree))


def json_of(tree: Any) -> bytes:
    return json.dumps(tree, skipkeys=True).encode()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


class Evil:
    """What pickle would do something for."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


@cases(150)
@given(damaged(npy(np.zeros((4, 3, 2, 2), np.uint8)), npy(np.arange(4)), npy(np.array(["a", "b"] * 2))))
@example(npy(np.array([Evil()] * 4)))
@example(pickle.dumps(Evil()))
@example(b"PK\x03\x04")
@example(npy(np.zeros((), np.int64)))
@example(npy(np.arange(3)))
def test_damaged_columns(content):
    with sandbox() as folder:
        (folder / "image.npy").write_bytes(content)
        np.save(folder / "label.npy", np.arange(4))
        ends_well("column", lambda: Columns(folder, ["image", "label"], CPU).rows(torch.arange(2)))


ENCODER = {"name": "small", "architecture": "ResNet", "width": 4, "blocks": [1], "stride": 4}
FACTS = {"size": 16}


def weights() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_file(build_encoder(ENCODER, FACTS).state_dict(), Path(folder, "w"))
        return Path(folder, "w").read_bytes()


WEIGHTS = weights()
HEADER = int.from_bytes(WEIGHTS[:8], "little")


def load_weights(content: bytes) -> None:
    with sandbox() as folder:
        (folder / "encoder.safetensors").write_bytes(content)
        ends_well("safetensors", lambda: frozen.load(folder / "encoder.safetensors", ENCODER, FACTS))


@cases(100)
@given(damaged(WEIGHTS, WEIGHTS[: HEADER + 8]))
@example(pickle.dumps(Evil()))
@example(b"\xff" * 8 + WEIGHTS[8:])
def test_damaged_weights(content):
    load_weights(content)


@cases(80)
@given(twisted(json.loads(WEIGHTS[8 : HEADER + 8])))
def test_absurd_weights(header):
    text = json_of(header)
    load_weights(len(text).to_bytes(8, "little") + text + WEIGHTS[HEADER + 8 :])


def saved(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


RANDOM = torch.get_rng_state()
STATE = {"step": 3, "curve": [], "seconds": 1.0, "method": {"w": torch.ones(9)}, "optimizer": {}, "random": RANDOM}
CHECKPOINT = saved(STATE | {"random_cuda": []})


@cases(100)
@given(damaged(CHECKPOINT))
@example(saved(Evil()))
@example(pickle.dumps(Evil()))
@example(saved([1, 2]))
@example(saved(STATE))
@example(saved(STATE | {"random": torch.ones(3)}))
@example(saved(STATE | {"random": None}))
def test_damaged_checkpoints(content):
    """One that cannot be used is passed over, and nothing of it counts: the random numbers stay as they were."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with sandbox() as folder:
        (folder / "checkpoint.pt").write_bytes(content)
        if ends_well("checkpoint", lambda: checkpoint.restore(folder, CPU)) is None:
            assert torch.equal(torch.get_rng_state(), before)


STATUS = {"status": "ok", "step": None, "loss": 0.5, "seconds": 3.0, "curve": [{"step": 1, "samples": 8, "loss": 0.5}]}


@cases(150)
@given(damaged(json.dumps(STATUS).encode()))
@example(b"[]")
@example(b"9" * 5000)
@example(b"[" * 100_000)
@example(b"\xff")
def test_damaged_results(content):
    with sandbox() as folder:
        (folder / "scores.json").write_bytes(content)
        (folder / "status.json").write_bytes(content)
        ends_well("json", lambda: results.read_json(folder / "scores.json"))
        ends_well("status", lambda: frozen.pretraining_status(folder))


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    write_results(folder, seeds=[0], entries=("simclr", "untrained"))
    return folder


REPORTED = ["pretrain/0.json", "evaluate/0.json"]


@cases(60)
@given(data=st.data())
def test_absurd_results(reported, data):
    """What runs measured, said wrongly, is read as it is, or its file is named."""
    name = data.draw(st.sampled_from(REPORTED))
    path = reported / "metrics/image/simclr" / name
    good = path.read_bytes()

    def work() -> None:
        for entry in results.read(reported).modalities[0].entries:
            for run in entry.runs:
                assert run.status
                assert all(isinstance(value, int | float) for value in run.numbers.values())
                assert isinstance(run.curve, dict)
                assert all(isinstance(found["provenance"], dict) for found in run.stages.values())

    try:
        path.write_bytes(json_of(data.draw(twisted(json.loads(good)))))
        found = ends_well("results", work)
        assert found is None or "image/simclr/" in found
    finally:
        path.write_bytes(good)


# ---- A sweep's journal


@pytest.fixture(scope="module")
def journals(tmp_path_factory) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("journal"))
        patch.setenv("MLFLOW_TRACKING_URI", "off")
        sweep.work(search(trials=3), objective)
        (path,) = Path(".scratch/sweeps").glob("*.journal")
        return path.read_bytes()


def open_journal(content: bytes) -> None:
    with sandbox() as folder:
        sought = search(trials=3)
        path = folder / f".scratch/sweeps/{sought.study}.journal"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)

        def work() -> int:
            study = sweep.open_study(sought)
            for trial in study.get_trials(deepcopy=False):
                sweep.lost(trial)
            return len(sweep.results_of(study, 3))

        ends_well("journal", work)


@cases(40, share=0.5)
@given(data=st.data())
def test_damaged_journals(journals, data):
    open_journal(data.draw(damaged(journals)))


@cases(40, share=0.5)
@given(data=st.data())
def test_absurd_journals(journals, data):
    tree = data.draw(twisted([json.loads(line) for line in journals.splitlines()]))
    open_journal(b"".join(json_of(line) + b"\n" for line in (tree if isinstance(tree, list) else [tree])))
