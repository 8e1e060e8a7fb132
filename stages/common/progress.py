"""Progress of long work: a line that changes on a terminal, a sparse line elsewhere."""

import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

SPARSE = 20.0  # seconds between lines where there is no terminal
OFTEN = 0.2  # and on a terminal


class Progress:
    """Counts `unit`s towards `total`, with speed, time left and the numbers that the caller shows."""

    def __init__(self, label: str, total: int, unit: str):
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(desc=label, total=total, unit=unit, disable=not self.terminal, leave=False)
        self.label, self.total, self.unit = label, total, unit
        self.done, self.began = 0, time.monotonic()
        self.spoke = self.began

    def advance(self, count: int, **numbers: float) -> None:
        """Counts on, and now and then shows it, with the numbers given."""
        self.done += count
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in numbers.items()}, refresh=False)
        self.bar.update(count)
        now = time.monotonic()
        if not self.terminal and now - self.spoke > SPARSE:
            self.spoke = now
            speed = self.done / (now - self.began)
            shown = "".join(f", {k} {v:.3g}" for k, v in numbers.items())
            left = (self.total - self.done) / speed
            print(
                f"{self.label}: {self.done / self.total:.0%}{shown}, {speed:.0f} {self.unit}/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        self.bar.close()


class Shares:
    """One line for work in several parts: how far each of them is, and one time left for all."""

    def __init__(self, label: str, parts: Iterable[str]):
        self.label, self.terminal = label, sys.stderr.isatty()
        self.shares = dict.fromkeys(parts, 0.0)
        self.first: dict[str, float] = {}  # the share at which a part, which may be a resumed one, began
        self.began = self.spoke = time.monotonic()
        self.width = 0

    def tell(self, part: str, share: float) -> None:
        """That a part is so far, from 0 to 1."""
        self.first.setdefault(part, share)
        self.shares[part] = share

    def show(self) -> None:
        """Shows the line, unless it was shown a moment ago."""
        now = time.monotonic()
        if now - self.spoke < (OFTEN if self.terminal else SPARSE):
            return
        self.spoke = now
        if self.terminal:
            line = self.line(now)
            print(f"\r{line:{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(line)
        else:
            print(self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """As in `image simclr: seed 0 45 %, seed 1 40 %; 12 s left`."""
        parts = ", ".join(f"{part} {share:.0%}" for part, share in self.shares.items())
        done = sum(self.shares.values()) - sum(self.first.values())
        if not done:
            return f"{self.label}: {parts}"
        left = (now - self.began) * (len(self.shares) - sum(self.shares.values())) / done
        return f"{self.label}: {parts}; {left:.0f} s left"

    def close(self) -> None:
        """Clears the line of a terminal."""
        if self.terminal:
            print(f"\r{'':{self.width}}\r", end="", file=sys.stderr, flush=True)
