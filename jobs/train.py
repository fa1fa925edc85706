"""Train a multi-task image model: on Ray workers, or in this process. `python jobs/train.py --help` explains."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtl import cli


def main() -> int:
    """Parse, check, train, show."""
    from mtl import arguments, embedded, preflight, session
    from mtl.console import RunConsole

    asked = arguments.parse(sys.argv[1:])
    config, console = asked.config, RunConsole()
    console.line(f"run '{config.name}' of recipe {config.recipe} on {config.runtime}, kept in {config.storage}")
    if asked.dry_run:
        from mtl import doctor, findings

        found = findings.examine(doctor.dry_run(doctor.Case(config)), console.line)
        return findings.conclude(found, console.line)

    embedded.ensure(config)
    plan = preflight.check(config)
    for line in plan.describe(config):
        console.line(line)

    if asked.preview:
        from mtl.preview import draw

        draw(config, plan, asked.preview)
        console.line(f"wrote {asked.preview}")
        return 0

    if plan.record is not None and plan.record.status == "finished":
        return console.conclude(config, session.already(plan.record, console))
    session.try_model(config, plan.manifest, console)
    if config.runtime == "ray":
        console.line("joining Ray")
        from mtl.on_ray.train import train
    else:
        console.line("loading torch")
        from mtl.local import train
    return console.conclude(config, train(config, console))


if __name__ == "__main__":
    cli.run(main)
