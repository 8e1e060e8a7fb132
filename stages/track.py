"""Writes into MLflow what is in files and not there yet, as after a clone or a fault.   python -m stages.track

metrics/ and reports/sweeps -> the store that `mlflow ui` shows
"""

from .common.command import command
from .common.settings import InputError
from .tracking import runs, store


def main() -> None:
    runs.write_all()
    if store.failed():
        raise InputError(f"the store {store.address()} cannot be used; mend it or move it away, and start again")
    if store.available():
        print("`mlflow ui` shows it:")
        for name, link in store.pages().items():
            print(f"  {name}: {link}")


if __name__ == "__main__":
    command(main)
