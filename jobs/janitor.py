"""What a run's storage holds that nobody needs: `python jobs/janitor.py RUN [--delete] [--older-than-hours 24]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtl import cli
from mtl.errors import ConfigError

LEAST_HOURS = 1.0


def janitor(run: str, /, delete: bool = False, older_than_hours: float = 24.0) -> int:
    """List checkpoint files that no commit names, and writes that were never finished, with sizes and ages.

    Args:
        run: address of the run: a folder or s3://bucket/prefix, as jobs/train.py printed it; or of another folder in
            which a writer was killed, such as a data set's.
        delete: also delete them. A run in progress loses nothing by it.
        older_than_hours: how long a writer must have been silent to be taken for dead.
    """
    from mtl import janitor as cleaning
    from mtl.console import RunConsole
    from mtl.store import open_store

    if not older_than_hours >= LEAST_HOURS:
        raise ConfigError(
            "The writes of a job that is alive could be deleted.",
            got=f"--older-than-hours {older_than_hours:g}",
            expected=f"{LEAST_HOURS:g} or more",
            do="wait until a writer that was killed has been silent for as long",
        )
    console, store, age_s = RunConsole(), open_store(run), 3600 * older_than_hours
    found = cleaning.delete(store, age_s, console.line) if delete else cleaning.find(store, age_s)
    for line in cleaning.report(found, deleted=delete):
        console.line(line)
    return 0


if __name__ == "__main__":
    import tyro

    cli.run(lambda: tyro.cli(janitor))
