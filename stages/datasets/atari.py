"""Seconds of Atari games with their sound, played at random by an emulator (ale-py): frames and sound in step.

This is no camera's footage, and which game it is one picture tells; its sound alone tells less. Columns, a row a
second:

    video (N, F, 3, size, size) uint8    F frames spread over the second, each the brighter of two in a row
    sound (N, ticks, mels) uint8         log-mel spectrogram, see reading/sound.py
    label (N,) int64                     the game
    clip  (N,) int64                     which continuous play the second comes from; no two splits share one
    time  (N,) int64                     how many seconds of that play came before

Seconds without any sound are left out.
"""

import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Interval, MinLen

from ssl_methods import Count, unknown

from ..common.settings import InputError, one_line
from . import Columns, Dataset, Seed
from .reading import emulator
from .reading.sound import log_mel

SPLITS = ("train", "validation", "test")
CHILDREN = 2  # games that are played at a time
GAMES = (  # all play well at random, and are silent for less than a third of the time
    "asteroids",
    "atlantis",
    "beam_rider",
    "breakout",
    "centipede",
    "demon_attack",
    "enduro",
    "kangaroo",
    "krull",
    "ms_pacman",
    "name_this_game",
    "phoenix",
    "pong",
    "qbert",
    "seaquest",
    "space_invaders",
)


def load(
    *,
    games: Annotated[Sequence[str], MinLen(2)] = GAMES,
    train: Count = 240,
    validation: Count = 60,
    test: Count = 60,
    size: Count = 32,
    frames: Annotated[int, Interval(ge=1, le=emulator.SECOND)] = 4,
    ticks: Count = 60,
    mels: Count = 32,
    silent: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
    seed: Seed = 0,
) -> Dataset:
    """`train`, `validation` and `test` seconds of each game; the splits are plays from seeds of their own.

    `silent` is the share of a game's seconds that may have to be left out. Raises InputError where ale-py is not
    installed, for a game that it lacks, that is silent beyond that share, or that cannot be played.
    """
    known = roms()
    for game in games:
        if game not in known:
            raise InputError(unknown("game", game, known))
    if len(set(games)) < len(games):
        raise InputError("`games` names one game twice; name each once")
    wanted = dict(zip(SPLITS, (train, validation, test), strict=True))
    played = play_all(games, list(wanted.values()), size=size, frames=frames, silent=silent, seed=seed)
    parts = {split: [] for split in SPLITS}
    for label, plays in enumerate(played):
        for number, split in enumerate(SPLITS):
            sound = log_mel((plays[f"samples{number}"] - 128.0) / 128, ticks, mels)
            rows = np.full(len(sound), label)
            clip = (label * len(SPLITS) + number) << 32 | plays[f"clip{number}"]  # a number of its own for every play
            columns = {"video": plays[f"video{number}"], "sound": sound, "label": rows}
            parts[split].append({**columns, "clip": clip, "time": plays[f"time{number}"]})
    return Dataset(
        splits={split: joined(columns) for split, columns in parts.items()},
        classes=list(games),
        sources={"ale-py": version("ale-py")},
    )


def roms() -> list[str]:
    """The games that ale-py brings."""
    spec = find_spec("ale_py")  # not imported: it is the children who play
    if spec is None:
        raise InputError("the package ale-py is not installed; run `pip install ale-py==0.12.1`")
    return sorted(path.stem for path in Path(spec.origin).parent.glob("roms/*.bin"))


def joined(parts: list[Columns]) -> Columns:
    """The rows of all parts, column by column."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def play_all(
    games: Sequence[str], wanted: list[int], *, size: int, frames: int, silent: float, seed: int
) -> list[Columns]:
    """What `emulator` made of each game, two at a time, each in a process of its own."""
    from tqdm import tqdm

    def work(game: str) -> Columns:
        seeds = np.random.SeedSequence([seed, zlib.crc32(game.encode())]).generate_state(len(wanted)) >> 1
        order = {"game": game, "seeds": seeds.tolist(), "wanted": wanted}
        return play(game, json.dumps({**order, "size": size, "frames": frames, "silent": silent}))

    seconds_between_lines = 0.1 if sys.stderr.isatty() else 30
    bar = tqdm(total=len(games), desc="playing", unit="game", mininterval=seconds_between_lines)
    with bar, ThreadPoolExecutor(CHILDREN) as pool:
        waiting = [pool.submit(work, game) for game in games]
        try:
            played = []
            for game in waiting:
                played.append(game.result())
                bar.update()
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise
    return played


def play(game: str, order: str) -> Columns:
    """The columns that the child wrote. Raises InputError where it ended otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "played.npz")
        program = [sys.executable, "-P", emulator.__file__, order, out]
        child = subprocess.run(program, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if child.returncode == 0 and out.exists():
            with np.load(out) as columns:
                return dict(columns)
    lines = child.stderr.split("\n") if child.returncode else ["the emulator ended early"]
    said = next((one_line(line) for line in reversed(lines) if line.strip()), f"exit code {child.returncode}")
    raise InputError(f"the game {game!r} cannot be used ({said}); take it out of datasets.atari.games")
