"""Data with sight and sound: Atari games where the emulator is installed, clips made here where PyAV is."""

import json
import math
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from stages import datasets
from stages.datasets import atari
from stages.datasets.reading import emulator
from stages.datasets.reading.sound import log_mel, mel_filters
from stages.prepare import check, content_hash, prepare
from tests.datasets.test_datasets import SPLITS, refuses


def sine(frequency: float, rate: int, amplitude: float = 1.0) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(rate) / rate, dtype=np.float32)


# Spectrograms


def slow_log_mel(samples: np.ndarray, ticks: int, mels: int) -> np.ndarray:
    """The same by the formulas, one number at a time: (rate,) -> (ticks, mels)."""
    rate = len(samples)
    size = round(2 * rate / ticks)
    samples = samples - samples.mean()
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / size) for n in range(size)]
    frequencies = [rate * k / size for k in range(size // 2 + 1)]
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    corners = [700 * (10 ** (highest * m / (mels + 1) / 2595) - 1) for m in range(mels + 2)]
    found = np.zeros((ticks, mels))
    for tick in range(ticks):
        first = round((tick + 0.5) * rate / ticks - size / 2)
        part = [samples[first + n] * window[n] if 0 <= first + n < rate else 0 for n in range(size)]
        for k, frequency in enumerate(frequencies):
            wave = sum(x * np.exp(-2j * math.pi * k * n / size) for n, x in enumerate(part))
            power = (2 * abs(wave) / sum(window)) ** 2
            for m in range(mels):
                low, peak, high = corners[m : m + 3]
                if low < frequency <= peak:
                    found[tick, m] += power * (frequency - low) / (peak - low)
                elif peak < frequency < high:
                    found[tick, m] += power * (high - frequency) / (high - peak)
    return np.round(255 * np.clip(1 + 10 * np.log10(found + 1e-12) / 80, 0, 1))


def test_log_mel_is_its_formula():
    samples = np.random.default_rng(0).normal(0, 0.1, 400).astype(np.float32) + sine(60, 400, 0.5)
    found, expected = log_mel(samples[None], 10, 6)[0], slow_log_mel(samples, 10, 6)
    assert found.shape == (10, 6)
    assert np.abs(found - expected).max() <= 1


def test_log_mel_of_a_sine_is_loud_where_it_sounds_and_silence_is_zero():
    found = log_mel(np.stack([sine(1000, 16000), sine(1000, 16000, 0.01), np.full(16000, 0.3)]), 50, 32)
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 34) / 2595) - 1)
    nearest = np.abs(corners[1:-1] - 1000).argmin()
    assert (found[0, 1:-1].argmax(axis=1) == nearest).all()
    assert found[0, 25, nearest] >= 250
    assert found[0, 25, nearest] - found[1, 25, nearest] == pytest.approx(255 * 40 / 80, abs=1)  # 40 dB
    assert not found[2].any()


def test_log_mel_tells_when():
    samples = np.zeros((1, 16000), np.float32)
    samples[0, 8000:] = sine(500, 8000)
    loud = log_mel(samples, 50, 16)[0].max(axis=1)
    assert not loud[:23].any()
    assert (loud[27:] > 200).all()


def test_mel_filters_are_triangles_that_add_up_to_one():
    filters = mel_filters(16000, 2001, 20)
    assert filters.max(axis=0) == pytest.approx(1, abs=0.05)
    peaks = filters.argmax(axis=0)
    assert (np.diff(np.diff(peaks)) >= -1).all()  # further and further apart
    assert filters[peaks[0] + 1 : peaks[-1]].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_log_mel_refuses_filters_that_hear_nothing():
    assert "`mels` 64 is too fine" in refuses(log_mel, np.zeros((1, 1000), np.float32), 50, 64)


# atari


@pytest.fixture(scope="module")
def games():
    pytest.importorskip("ale_py")
    return datasets.load("atari", games=["pong", "enduro"], train=6, validation=3, test=3, size=16, mels=16)


def test_atari_has_as_many_seconds_of_each_game_as_asked_for(games):
    check("atari", games)
    assert games.classes == ["pong", "enduro"]
    assert [np.bincount(games.splits[split]["label"]).tolist() for split in SPLITS] == [[6, 6], [3, 3], [3, 3]]
    train = games.splits["train"]
    assert train["video"].shape == (12, 4, 3, 16, 16)
    assert train["sound"].shape == (12, 60, 16)
    assert train["clip"].dtype == train["time"].dtype == np.int64
    for columns in games.splits.values():
        assert columns["sound"].any(axis=(1, 2)).all()  # no second is silent
        assert (columns["video"].std(axis=(2, 3, 4)) > 0).all()
        assert len(set(zip(columns["clip"], columns["time"], strict=True))) == len(columns["clip"])


def seconds_of(columns: dict[str, np.ndarray]) -> set[tuple[bytes, bytes]]:
    return {(video.tobytes(), sound.tobytes()) for video, sound in zip(columns["video"], columns["sound"], strict=True)}


def test_atari_splits_share_no_play_and_no_second(games):
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(games.splits[a]["clip"]) & set(games.splits[b]["clip"])
        assert not seconds_of(games.splits[a]) & seconds_of(games.splits[b])


def test_atari_depends_on_the_seed_alone(games):
    settings = {"games": ["pong", "enduro"], "train": 6, "validation": 3, "test": 3, "size": 16, "mels": 16}
    assert content_hash(datasets.load("atari", **settings).splits) == content_hash(games.splits)
    other = datasets.load("atari", **settings, seed=1)
    assert content_hash(other.splits) != content_hash(games.splits)


def test_atari_plays_a_game_alike_whatever_is_played_beside_it(games):
    alone = datasets.load("atari", games=["enduro", "qbert"], train=6, validation=3, test=3, size=16, mels=16)
    for split in SPLITS:
        ours, theirs = games.splits[split], alone.splits[split]
        for name in ("video", "sound", "time"):
            assert np.array_equal(ours[name][ours["label"] == 1], theirs[name][theirs["label"] == 0])


def test_atari_names_a_game_that_kills_its_process():
    pytest.importorskip("ale_py")
    message = refuses(datasets.load, "atari", games=["pong", "joust"], train=1, validation=1, test=1)
    assert "data set atari: the game 'joust' cannot be used" in message
    assert "take it out of datasets.atari.games" in message


@pytest.mark.parametrize(
    ("program", "part"),
    [
        ("import os; os.abort()", "exit code -6"),
        ("import sys; sys.exit('of 9 seconds of play, 8 are silent')", "of 9 seconds of play, 8 are silent"),
        ("raise ValueError('no such\\nthing')", "thing"),
        ("pass", "ended early"),
    ],
)
def test_atari_names_a_game_however_its_process_ends(program, part, monkeypatch, tmp_path):
    (tmp_path / "emulator.py").write_text(program)
    monkeypatch.setattr(emulator, "__file__", str(tmp_path / "emulator.py"))
    message = refuses(atari.play, "chess", "{}")
    assert message.startswith("the game 'chess' cannot be used")
    assert part in message


def test_atari_names_a_silent_game(tmp_path):
    pytest.importorskip("ale_py")
    order = {"game": "pong", "seeds": [0], "wanted": [30], "size": 8, "frames": 1, "silent": 0.0}
    program = [sys.executable, emulator.__file__, json.dumps(order), tmp_path / "out.npz"]
    child = subprocess.run(program, capture_output=True, text=True)
    assert child.returncode == 1
    assert "are silent" in child.stderr
    assert not (tmp_path / "out.npz").exists()


def test_atari_refuses_games_that_are_not_there_or_twice(monkeypatch):
    monkeypatch.setattr(atari, "roms", lambda: ["pong", "qbert"])
    assert "did you mean 'pong'" in refuses(datasets.load, "atari", games=["pong", "pongg"])
    assert "twice" in refuses(datasets.load, "atari", games=["pong", "pong"])
    assert "silent" in refuses(datasets.check, "atari", {"silent": 1.0})


def test_atari_says_what_to_install(monkeypatch):
    monkeypatch.setattr(atari, "find_spec", lambda name: None)
    assert "pip install ale-py==0.12.1" in refuses(datasets.load, "atari")


# video_folder


def film(
    path: Path,
    seconds: float = 2.5,
    *,
    tone: float | None = 440,
    colours: Sequence[ArrayLike] | None = (40, 200),
    late: float = 0,
    fps: int = 20,
    rate: int = 16000,
) -> Path:
    """A clip whose pictures are as bright as the first of `colours`, and from 1 s on as the second.

    Its sound is a tone from 1.25 s on. It begins `late` seconds after the pictures, or they after it. None leaves one
    of the two out.
    """
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    codecs = {".webm": ("libvpx", "libopus"), ".avi": ("mpeg4", "mp3"), ".mpg": ("mpeg1video", "mp2")}
    sight, hearing = codecs.get(path.suffix, ("libx264", "aac"))
    rate = 48000 if hearing == "libopus" else rate
    with av.open(path, "w") as out:
        video = audio = None
        if colours:
            video = out.add_stream(sight, rate=fps)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        if tone is not None:
            audio = out.add_stream(hearing, rate=rate, layout="mono")
        if video:
            for n in range(round(seconds * fps)):
                grey = colours[n >= fps]
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
                frame.pts = n + round(max(-late, 0) * fps)
                out.mux(video.encode(frame))
            out.mux(video.encode())
        if audio:
            time = np.arange(round(seconds * rate)) / rate
            samples = (0.5 * np.sin(2 * np.pi * tone * time) * (time >= 1.25)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, round(max(late, 0) * rate)
            resampler = av.AudioResampler(audio.format, audio.layout, audio.rate, audio.frame_size or None)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(audio.encode(part))
            out.mux(audio.encode())
    return path


def test_video_folder_cuts_clips_into_seconds(tmp_path):
    for n in range(3):
        film(tmp_path / "low" / f"{n}.mp4", 3.5, tone=300)
        film(tmp_path / "high" / f"{n}.mp4", 3.5, tone=3000)
    data = datasets.load("video_folder", root=str(tmp_path), size=8, frames=2, validation=0.3, test=0.3)
    check("video_folder", data)
    assert data.classes == ["high", "low"]
    columns = {name: np.concatenate([data.splits[s][name] for s in SPLITS]) for name in data.splits["train"]}
    assert columns["video"].shape == (12, 2, 3, 8, 8)
    assert columns["sound"].shape == (12, 60, 32)
    assert sorted(zip(columns["clip"], columns["time"], strict=True)) == [(c, t) for c in range(6) for t in (1, 2)]
    assert np.abs(columns["video"].astype(int) - 200).max() <= 6  # the silent first second, which was dark, is left out
    pitch = columns["sound"].astype(int).sum(axis=1).argmax(axis=1)
    assert pitch[columns["label"] == 0].min() > pitch[columns["label"] == 1].max()
    for split in SPLITS:
        others = np.concatenate([data.splits[s]["clip"] for s in SPLITS if s != split])
        assert not set(data.splits[split]["clip"]) & set(others)


def test_video_folder_without_labels_and_with_splits(tmp_path):
    for split in ("train", "val", "test"):
        film(tmp_path / split / "one.mp4")
    data = datasets.load("video_folder", root=str(tmp_path))
    assert data.classes == []
    assert [list(columns) for columns in data.splits.values()] == [["video", "sound", "time", "clip"]] * 3
    assert [len(data.splits[split]["clip"]) for split in SPLITS] == [1, 1, 1]


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".ts"])
def test_video_folder_reads_every_format(ending, tmp_path):
    clip = cut(film(tmp_path / f"a{ending}", 3.2, fps=25))
    assert clip["time"].tolist()[-2:] == [1, 2]
    bright = clip["video"][clip["time"] >= 1].astype(int)
    assert np.abs(bright - 200).max() <= 8
    assert (clip["sound"][clip["time"] == 2].max(axis=2) > 150).all()


def cut(path: Path, **settings) -> dict[str, np.ndarray]:
    from stages.datasets import video_folder

    return video_folder.cut(path, **{"size": 8, "frames": 4, "rate": 16000, "ticks": 50, "mels": 16, **settings})


@pytest.mark.parametrize(("late", "times", "onset"), [(0.4, [1, 2], 0.25), (-0.5, [0, 1, 2], 0.75)])
def test_video_folder_keeps_sight_and_sound_in_step(late, times, onset, tmp_path):
    """Seconds begin where both do. From there, a tone that starts in the first audible second starts at `onset`."""
    clip = cut(film(tmp_path / "a.mkv", 4, late=late))
    assert clip["time"].tolist() == times
    loud = clip["sound"][0].max(axis=1)  # (50,)
    assert not loud[: round(50 * onset) - 5].any()
    assert (loud[round(50 * onset) + 3 :] > 150).all()
    bright = clip["video"].mean(axis=(2, 3, 4)) > 120  # from one second after the pictures' first
    assert bright.tolist() == [[times[0] + (f + 0.5) / 4 > min(1 - late, 1) for f in range(4)]] + [[True] * 4] * (
        len(times) - 1
    )


def test_video_folder_shows_the_frame_of_the_moment(tmp_path):
    from stages.datasets import video_folder

    begin, seen = video_folder.see(film(tmp_path / "a.mp4", 2.5), 0.35, 8, 4, most=20)
    assert begin == 0.35
    bright = [int(picture.mean() > 120) for picture in seen]  # moments 0.475, 0.725, 0.975, 1.225, ... 2.475
    assert bright == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert len(video_folder.see(tmp_path / "a.mp4", 0.35, 8, 4, most=5)[1]) == 5


def test_video_folder_turns_pictures_upright(tmp_path):
    """Bright on the left, and marked as filmed with what is left above."""
    left = np.repeat([[[220]] * 32 + [[20]] * 32], 48, axis=0)  # (48, 64, 1)
    path = film(tmp_path / "a.mp4", colours=(left, left))
    lying = cut(path)["video"]
    assert lying[..., :3].min() > 180
    assert lying[..., 5:].max() < 60
    header = bytearray(path.read_bytes())
    matrix = header.index(b"tkhd") + 44
    header[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(header)
    upright = cut(path)["video"]
    assert upright[..., :3, :].min() > 180
    assert upright[..., 5:, :].max() < 60


def test_video_folder_skips_what_is_of_no_use(tmp_path):
    film(tmp_path / "good.mp4")
    film(tmp_path / "fine.mp4")
    film(tmp_path / "well.mp4")
    film(tmp_path / "mute.mp4", tone=None)
    film(tmp_path / "blind.mp4", colours=None)
    film(tmp_path / "short.mp4", 0.5)
    film(tmp_path / "silent.mp4", tone=0)
    (tmp_path / "empty.mp4").write_bytes(b"")
    torn = film(tmp_path / "torn.mp4")
    torn.write_bytes(torn.read_bytes()[:600])
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    (tmp_path / "text.txt").write_text("no clip")
    data = datasets.load("video_folder", root=str(tmp_path), validation=0.3, test=0.3, tolerate=0.8)
    assert [reason.split(" ")[0] for reason in data.skipped] == [
        "blind.mp4",
        "empty.mp4",
        "list.mp4",
        "mute.mp4",
        "short.mp4",
        "silent.mp4",
        "text.txt",
        "torn.mp4",
    ]
    reasons = dict(reason.split(" ", 1) for reason in data.skipped)
    assert reasons["mute.mp4"] == "(without sound)"
    assert reasons["blind.mp4"] == "(without pictures)"
    assert reasons["silent.mp4"] == "(silent)"
    assert reasons["text.txt"] == "(not a clip)"
    assert "less than a second" in reasons["short.mp4"]
    assert str(tmp_path) not in " ".join(data.skipped)
    assert "8 of 11 files" in refuses(datasets.load, "video_folder", root=str(tmp_path))


def test_video_folder_refuses_what_is_no_folder_of_clips_and_settings_that_do_not_fit(monkeypatch, tmp_path):
    import zipfile

    for root, part in (("", "datasets.video_folder.root"), (str(tmp_path), "holds no clips")):
        assert part in refuses(datasets.load, "video_folder", root=root)
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as packed:
        packed.writestr("a.mp4", "")
    assert "unpack it" in refuses(datasets.load, "video_folder", root=str(tmp_path / "clips.zip"))
    film(tmp_path / "clips" / "a.mp4")
    assert "too fine" in refuses(datasets.load, "video_folder", root=str(tmp_path / "clips"), mels=500)
    from stages.datasets import video_folder

    monkeypatch.setattr(video_folder, "find_spec", lambda name: None)
    assert "pip install" in refuses(datasets.load, "video_folder", root=str(tmp_path))


def test_prepare_writes_the_columns_of_clips(tmp_path):
    for n in range(4):
        film(tmp_path / "clips" / f"{n}.mp4")
    settings = {"root": str(tmp_path / "clips"), "validation": 0.25, "test": 0.25}
    manifest = prepare("video_folder", settings, tmp_path / "data")
    assert manifest["facts"] == {}
    assert manifest["splits"]["train"]["columns"]["video"] == {"dtype": "uint8", "shape": [2, 4, 3, 32, 32]}
    assert np.load(tmp_path / "data/test/sound.npy").shape == (1, 60, 32)


@pytest.mark.parametrize(
    ("column", "array", "part"),
    [
        ("video", np.zeros((4, 2, 3, 8, 8), np.float32), "(N, F, 3, H, W) uint8"),
        ("video", np.zeros((4, 2, 1, 8, 8), np.uint8), "(N, F, 3, H, W) uint8"),
        ("video", np.zeros((4, 3, 8, 8), np.uint8), "(N, F, 3, H, W) uint8"),
        ("sound", np.zeros((4, 10, 6), np.float16), "(N, T, M) uint8"),
        ("sound", np.zeros((4, 1, 10, 6), np.uint8), "(N, T, M) uint8"),
    ],
)
def test_check_refuses_sight_and_sound_that_stages_cannot_use(column, array, part):
    columns = {"video": np.zeros((4, 2, 3, 8, 8), np.uint8), "sound": np.zeros((4, 10, 6), np.uint8)}
    right = dict.fromkeys(SPLITS, columns)
    check("mine", datasets.Dataset(right, [], {}))
    assert part in refuses(check, "mine", datasets.Dataset({**right, "test": {**columns, column: array}}, [], {}))
