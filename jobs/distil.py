"""What a run's balancer did, and static weights made of it: `python jobs/distil.py RUN [--sweep-file FILE]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtl import cli


def distil(run: str, /, sweep_file: Path | None = None) -> int:
    """Average the weights that a run's balancer gave, and say whether the tasks conflict.

    Args:
        run: address of the run: a folder or s3://bucket/prefix, as jobs/train.py printed it.
        sweep_file: also write the weights to this file, as the first point that jobs/tune.py tries.
    """
    from mtl import distil as distilling
    from mtl.config import parse
    from mtl.console import RunConsole
    from mtl.store import open_store

    console, store = RunConsole(), open_store(run)
    config = parse(store.get("config.yaml").decode())
    own = {name: task.weight for name, task in config.tasks.items()}
    found = distilling.distil(distilling.rows_of(store), own)
    for line in distilling.verdict(found):
        console.line(line)
    console.line("Static weights, for jobs/train.py or a recipe:")
    flags = [f"--tasks.{name}.weight {weight:g}" for name, weight in found.weights.items()]
    console.line(" ".join(["--balancing.method static", *flags]))
    if sweep_file is not None:
        sweep_file.write_text(distilling.sweep_file(found))
        console.line("To search from there:")
        changes = f"--balancing.method static --sweep-file {sweep_file}"
        console.line(f"python jobs/tune.py --config {run.rstrip('/')}/config.yaml {changes}")
    return 0


if __name__ == "__main__":
    import tyro

    cli.run(lambda: tyro.cli(distil))
