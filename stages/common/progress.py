"""Progress of long work: a bar on a terminal, a sparse line elsewhere."""

import sys
import time

from tqdm import tqdm

SPARSE = 20.0  # seconds between lines where there is no terminal


class Progress:
    """Counts `unit`s towards `total`, with speed, time left and the numbers that the caller shows; or shows nothing."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0, *, shown: bool = True):
        self.shown, self.terminal = shown, sys.stderr.isatty()
        hidden = not (shown and self.terminal)
        self.bar = tqdm(desc=label, total=total, initial=done, unit=unit, disable=hidden, leave=False)
        self.label, self.total, self.unit = label, total, unit
        self.done, self.first, self.began = done, done, time.monotonic()
        self.spoke = self.began

    def advance(self, count: int, **numbers: float) -> None:
        """Counts on, and now and then shows it, with the numbers given."""
        self.done += count
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in numbers.items()}, refresh=False)
        self.bar.update(count)
        now = time.monotonic()
        if self.shown and not self.terminal and now - self.spoke > SPARSE:
            self.spoke = now
            speed = (self.done - self.first) / (now - self.began)
            shown = "".join(f", {k} {v:.3g}" for k, v in numbers.items())
            left = (self.total - self.done) / speed
            print(
                f"{self.label}: {self.done / self.total:.0%}{shown}, {speed:.0f} {self.unit}/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        self.bar.close()
