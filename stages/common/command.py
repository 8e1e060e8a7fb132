"""How a stage's `main` is run: what goes wrong with the machine, or is the user's to mend, is told in one line."""

import errno
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from .settings import InputError

OUTPUTS = ("data", "models", "metrics", "reports", ".scratch")
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = 2**20  # bytes left on a disk that is full, or as good as full


def command(main: Callable[[], None]) -> None:
    """Runs a stage's `main`. What people can mend becomes one line on stderr, and exit code 1 (see `explained`).

    SIGTERM stops it as Ctrl-C does, in order.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; started again, it goes on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if text := explained(error):
            sys.exit(f"error: {text}")
        raise


def explained(error: Exception) -> str | None:
    """In one line, what people can mend: an `InputError`, a full disk, a folder not to be written to; else None."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REFUSED:
        return f"{error.filename} may not be written to ({error.strerror})"
    for folder in (Path(), *filter(Path.exists, map(Path, OUTPUTS))):  # libraries say it in many ways
        if shutil.disk_usage(folder).free < FULL:
            return f"the disk of {folder.absolute()} is full; free some of it and start again: it goes on"
    return None
