"""Plays one Atari game at random and writes what was seen and heard. A program of its own, which `atari` starts.

    python emulator.py '{"game": "pong", "seeds": [1], "wanted": [60], "size": 32, "frames": 4, "silent": 0.5}' out.npz

It imports nothing of this package, so that it starts quickly: some games kill the process that plays them.
"""

import json
import sys
from pathlib import Path

import numpy as np

SECOND = 60  # frames of the emulator, each with 512 samples of sound
CHANGE = 0.1  # how likely a player does something else in the next frame
JUDGED = 60  # seconds, at least, of play before a game is called silent
OPENING = 6  # seconds that are left out, as all plays of some games begin alike


def main() -> None:
    order, out = json.loads(sys.argv[1]), sys.argv[2]
    columns = {}
    for number, (seed, wanted) in enumerate(zip(order["seeds"], order["wanted"], strict=True)):
        played = play(order["game"], seed, wanted, order["size"], order["frames"], order["silent"])
        columns |= {f"{name}{number}": column for name, column in played.items()}
    np.savez(out, **columns)


def play(game: str, seed: int, wanted: int, size: int, frames: int, silent: float) -> dict[str, np.ndarray]:
    """`wanted` seconds that are not silent: video (N, F, 3, size, size), samples (N, 30720), clip and time (N,).

    A game that is over begins anew, as another clip; its unfinished second is left out, and so is the opening. Ends the
    program where more than a share `silent` of what could be used has no sound.
    """
    import ale_py
    from PIL import Image

    rng = np.random.default_rng(seed)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setBool("sound_obs", True)
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", 0)
    ale.loadROM(Path(ale_py.__file__).parent / "roms" / f"{game}.bin")
    actions = ale.getMinimalActionSet()
    action, clip, time, quiet, rows = actions[0], 0, 0, 0, []
    shown = {(2 * f + 1) * SECOND // (2 * frames) for f in range(frames)}
    while len(rows) < wanted:
        if quiet > silent * max(wanted, JUDGED, len(rows) + quiet):
            sys.exit(f"of {len(rows) + quiet} seconds of play, {quiet} are silent")
        pictures, samples = [], []
        for frame in range(SECOND):
            if rng.random() < CHANGE:
                action = actions[rng.integers(len(actions))]
            before = ale.getScreenRGB() if frame in shown else None
            ale.act(action)
            samples.append(ale.getAudio())
            if before is not None:  # things flicker: what one frame lacks is in the next
                both = np.maximum(before, ale.getScreenRGB())
                pictures.append(np.asarray(Image.fromarray(both).resize((size, size), Image.Resampling.BOX)))
            if ale.game_over():
                break
        if ale.game_over():
            ale.reset_game()
            clip, time = clip + 1, 0
            continue
        heard = np.concatenate(samples)
        if time >= OPENING and heard.min() < heard.max():
            rows.append((np.stack(pictures).transpose(0, 3, 1, 2), heard, clip, time))
        elif time >= OPENING:
            quiet += 1
        time += 1
    names = ("video", "samples", "clip", "time")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


if __name__ == "__main__":
    main()
