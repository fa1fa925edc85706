"""Look at everything that a training job depends on, before it runs: `python jobs/doctor.py RECIPE [options]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_HELP = """\
usage: python jobs/doctor.py RECIPE [options]
       python jobs/doctor.py --config FILE [options]

Look at everything that `jobs/train.py` with the same arguments depends on: software on all nodes, batch arithmetic,
data set and labels, storage with the identity in use, the run's past, resources, memory, one step on one worker.
Trains nothing, and leaves nothing behind. Exit status 0, or 2 where something has failed.

recipes
{recipes}

options: those of jobs/train.py
"""


def main() -> int:
    """Parse, look, conclude."""
    if len(sys.argv) > 1 and not {"-h", "--help"} & set(sys.argv):
        print("examining; nothing is trained and nothing is left behind", flush=True)
    from mtl import arguments, doctor
    from mtl.console import RunConsole
    from mtl.findings import conclude, examine

    config, console = arguments.parse_config(sys.argv[1:], "doctor.py", _HELP), RunConsole()
    case = doctor.Case(config)
    found = examine(doctor.examination(case), console.line)
    if config.runtime == "ray":
        console.line("joining Ray")
        from mtl.on_ray.doctor import examine_cluster

        found += examine_cluster(case, console.line)
    else:
        found += examine([doctor.local_step(case)], console.line)
    return conclude(found, console.line)


if __name__ == "__main__":
    from mtl import cli

    cli.run(main)
