"""Evaluate a commit of a run on a split: `python jobs/evaluate.py RUN [--split test] [--weights ema] [--json FILE]`."""

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtl import cli


def evaluate(
    run: str,
    /,
    split: str = "test",
    data: str | None = None,
    commit: Literal["last", "best"] = "last",
    weights: Literal["raw", "ema"] = "raw",
    json: Path | None = None,
) -> int:
    """Print the metrics of each task over every row of a split, from a commit of a run.

    Args:
        run: address of the run: a folder or s3://bucket/prefix, as jobs/train.py printed it.
        split: train, val or test.
        data: another address of the data set than the run's own.
        commit: the last one, or the one with the best evaluation.best.
        weights: those that were trained, or their average (optimizer.ema_epochs).
        json: also write the metrics to this file.
    """
    from json import dumps

    from mtl import preflight
    from mtl.console import RunConsole

    console = RunConsole()
    console.line(f"evaluating {run} on {split}")
    saved = preflight.check_saved(run, split, data)
    from mtl.evaluation import evaluate_run

    found = evaluate_run(saved, split, console.line, which=commit, weights=weights)
    rows = f"{found.rows:,} rows" + (f", {found.quarantined:,} of them quarantined" if found.quarantined else "")
    console.table(f"{split}: {rows}, commit of step {found.commit.step:,}", found.metrics)
    if json is not None:
        counts = {"step": found.commit.step, "rows": found.rows, "quarantined": found.quarantined}
        json.write_text(dumps({**counts, "metrics": found.metrics}, indent=1))
    return 0


if __name__ == "__main__":
    import tyro

    cli.run(lambda: tyro.cli(evaluate))
