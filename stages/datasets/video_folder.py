"""Your own clips with sound, labelled by their sub-folders or not (see reading/folder.py), cut into seconds.

Columns, a row a second:

    video (N, F, 3, size, size) uint8    F frames spread over the second: shorter side to `size`, centre cropped
    sound (N, ticks, mels) uint8         log-mel spectrogram, see reading/sound.py
    label (N,) int64                     the class, where there are classes
    clip  (N,) int64                     the file, in sorted order; splits that are made here share none
    time  (N,) int64                     how many seconds of that clip came before

Seconds begin where sight and sound both do; what is left at the end is no row, and neither is a second without any
sound. A clip of which no second is left is skipped and listed.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from ssl_methods import Count, Fraction

from ..common.settings import InputError
from . import Columns, Dataset, Seed, picture, take
from .reading.folder import Kind, Skipped, complain, deal, find_places, locate
from .reading.sound import log_mel

KIND = Kind("video_folder", "clip", "clips", (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"))
# What a file may turn out to be, whatever its name: no playlist, which could lead anywhere.
SAFE = {"format_whitelist": "mov,mp4,matroska,webm,avi,mpeg,mpegts", "protocol_whitelist": "file"}
LONGEST = 6 * 60 * 60  # seconds of sound that a clip may claim to have


def load(
    *,
    root: str = "",
    size: Count = 32,
    frames: Count = 4,
    rate: Count = 16_000,
    ticks: Count = 60,
    mels: Count = 32,
    validation: Fraction = 0.1,
    test: Fraction = 0.1,
    seed: Seed = 0,
    tolerate: Fraction = 0.05,
) -> Dataset:
    """The seconds of all clips under `root`, a folder, their sound at `rate` samples a second.

    `validation` and `test` are shares of train, for splits that are missing; `tolerate` is the share of all files that
    may be skipped. Raises InputError where PyAV is not installed, where there are no clips, too few to split, or too
    many files to skip.
    """
    if find_spec("av") is None:
        raise InputError('the package av is not installed; run `pip install "av>=18,<19"`')
    source = locate(root, KIND)
    if not source.is_dir():
        raise InputError(f"{root!r} is an archive, and clips are read from a folder; unpack it")
    skipped: Skipped = {}
    places = find_places(source, KIND, skipped)

    def work(file: str) -> Columns | None:
        try:
            return cut(source / file, size=size, frames=frames, rate=rate, ticks=ticks, mels=mels)
        except InputError:  # of the settings, not of the file
            raise
        except Exception as error:  # decoders raise nearly everything on damaged files
            skipped[file] = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return None

    clips = {n: clip for n, clip in enumerate(in_threads(work, [place.file for place in places])) if clip}
    reasons = complain(root, KIND, len(clips), skipped, tolerate)
    columns = {name: np.concatenate([clip[name] for clip in clips.values()]) for name in ("video", "sound", "time")}
    columns["clip"] = np.repeat(list(clips), [len(clip["time"]) for clip in clips.values()])
    cut_from = [places[clip] for clip in columns["clip"]]
    usable, shares = np.ones(len(cut_from), bool), {"validation": validation, "test": test}
    rows, classes, labels = deal(root, KIND, cut_from, usable, shares, seed, groups=columns["clip"])
    if classes:
        columns["label"] = labels
    splits = {split: take(columns, of_split) for split, of_split in rows.items()}
    return Dataset(splits, classes, {"av": version("av")}, reasons)


def in_threads(work: Callable[[str], Columns | None], files: list[str]) -> list[Columns | None]:
    """`work` of each file, in as many threads as there are processors."""
    from tqdm import tqdm

    seconds_between_lines = 0.1 if sys.stderr.isatty() else 30
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        done = pool.map(work, files)
        return list(tqdm(done, total=len(files), desc="reading clips", mininterval=seconds_between_lines))


def cut(path: Path, *, size: int, frames: int, rate: int, ticks: int, mels: int) -> Columns:
    """The columns video, sound and time of one clip. Raises ValueError where no second of it can be used."""
    heard_from, samples = hear(path, rate)
    begin, video = see(path, heard_from, size, frames, most=len(samples) // rate * frames)
    samples = samples[max(round((begin - heard_from) * rate), 0) :]
    seconds = min(len(samples) // rate, len(video) // frames)
    if not seconds:
        raise ValueError("sight and sound together last less than a second")
    sound = log_mel(samples[: seconds * rate].reshape(seconds, rate), ticks, mels)
    loud = sound.any(axis=(1, 2))
    if not loud.any():
        raise ValueError("silent")
    video = np.stack(video[: seconds * frames]).reshape(seconds, frames, 3, size, size)
    return take({"video": video, "sound": sound, "time": np.arange(seconds)}, loud)


def hear(path: Path, rate: int) -> tuple[float, np.ndarray]:
    """When the sound of a clip begins, and its samples in one channel, (n,) float32 in [-1, 1]."""
    import av

    resampler, parts, begin, heard = av.AudioResampler("flt", "mono", rate), [], None, 0.0
    with av.open(path, options=SAFE) as clip:
        if not clip.streams.audio:
            raise ValueError("without sound")
        for frame in clip.decode(clip.streams.audio[0]):
            begin = frame.time if begin is None else begin
            heard += frame.samples / frame.sample_rate
            if heard > LONGEST:  # before it is resampled: the rate that a file claims may be a lie
                raise ValueError("longer than a clip may be")
            parts += resampler.resample(frame)
    if not parts:
        raise ValueError("without sound")
    parts += resampler.resample(None)
    return begin, np.concatenate([part.to_ndarray()[0] for part in parts])


def see(path: Path, begin: float, size: int, frames: int, most: int) -> tuple[float, list[np.ndarray]]:
    """When both sight and sound have begun, at `begin` or later, and what is seen `frames` times a second from there.

    It is seen `most` times at most: a moment that a file claims may lie at the end of time.

    Each second's moments are the middles of as many equal parts of it, and at a moment one sees the latest frame.
    """
    import av

    seen: list[np.ndarray] = []
    with av.open(path, options=SAFE) as clip:
        if not clip.streams.video:
            raise ValueError("without pictures")
        stream = clip.streams.video[0]
        stream.thread_type = "AUTO"
        decoded = clip.decode(stream)
        first = next(decoded, None)
        if first is None:
            raise ValueError("without pictures")
        begin = max(begin, first.time)
        for frame, following in pairwise(chain([first], decoded, [None])):
            if len(seen) >= most:
                break
            until = following.time if following else frame.time + 1 / (stream.average_rate or frames)
            while len(seen) < most and begin + (len(seen) + 0.5) / frames < until:
                upright = frame.to_image().rotate(frame.rotation, expand=True)  # telephones film lying down
                seen.append(picture(upright, size))
    return begin, seen
