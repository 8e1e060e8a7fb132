"""How a stage's `main` is run: what goes wrong with the machine, or is the user's to mend, is told in one line."""

import errno
import gc
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
    """Runs a stage's `main`. What people can mend becomes one line on stderr, and exit code 1: an `InputError`, a full
    disk, a folder that may not be written to. SIGTERM stops it as Ctrl-C does, in order.
    """
    gc.freeze()  # what was imported stays, and to look through it at the end takes half a second
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped; started again, it goes on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSED:
            sys.exit(f"error: {error.filename} may not be written to ({error.strerror})")
        for folder in (Path(), *filter(Path.exists, map(Path, OUTPUTS))):  # libraries say it in many ways
            if shutil.disk_usage(folder).free < FULL:
                sys.exit(f"error: the disk of {folder.absolute()} is full; free some of it and start again: it goes on")
        raise
