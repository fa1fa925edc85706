"""Search task weights and learning rates with Ray Tune over Ray Train. `python jobs/tune.py --help` explains."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtl import cli


def main() -> int:
    """Parse, check, execute the trials, show what they found."""
    from mtl import embedded, preflight, session
    from mtl.console import RunConsole
    from mtl.sweep import arguments
    from mtl.sweep.board import Board

    asked = arguments.parse(sys.argv[1:])
    config, console = asked.config, RunConsole()
    console.line(f"sweep '{config.name}' of recipe {config.recipe} on {config.runtime}, kept in {config.storage}")
    board = Board(config, asked.sweep, console.line)
    embedded.ensure(config)
    trial = board.terms.config_of(board.terms.baselines[-1])
    plan = preflight.check(trial)
    for line in (*plan.describe(config), *board.terms.describe()):
        console.line(line)
    session.try_model(trial, plan.manifest, console)

    with board:
        if not board.finished:
            if config.runtime == "ray":
                from mtl.on_ray.tune import run
            else:
                from mtl.sweep.local import run
            run(board, console)
        from mtl.sweep.results import conclude

        return conclude(board, asked.words, console.line)


if __name__ == "__main__":
    cli.run(main)
