"""The command line of a sweep: that of a training job, and what to search."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tyro

from mtl.arguments import given, parse_config
from mtl.config import Config
from mtl.sweep.settings import Sweep, load

_HELP = """\
usage: python jobs/tune.py RECIPE [options]
       python jobs/tune.py auto --data URI [options]
       python jobs/tune.py --config FILE [options]

Search task weights and learning rate of a configuration, against single-task and uniform-weight baselines. Every trial
is an ordinary run below STORAGE/NAME/trials. Killed or stopped, the same command goes on and repeats no finished trial.

recipes
{recipes}

options of the search (python jobs/tune.py RECIPE --help lists those of every trial, too)
  --sweep.trials N            trials with sampled values; the baselines come on top (default: 16)
  --sweep.search tpe|random   how points are chosen (default: tpe)
  --sweep.metric M            what decides, on validation: delta_m or TASK/METRIC (default: delta_m)
  --sweep.grace EPOCHS        no trial is pruned before (default: a quarter of the epochs)
  --sweep.concurrent N        most trials at a time (default: as many as fit)
  --sweep-file FILE           these and the search space, as YAML; docs/operations.md shows one
  --name NAME                 of the sweep (default: the recipe's, and -sweep)

examples
  python jobs/tune.py shapes --epochs 3 --sweep.trials 8
  python jobs/tune.py cifar10 --data s3://bucket/cifar10 --storage s3://bucket/runs --sweep.metric object/accuracy
  python jobs/tune.py shapes --runtime local --sweep.search random
"""


@dataclass(frozen=True)
class _Options:
    """The search.

    Args:
        sweep: how to search, for what, and how long.
        sweep_file: YAML file with these settings and the search space; flags go before it.
    """

    sweep: Sweep
    sweep_file: Path | None = None


@dataclass(frozen=True)
class Asked:
    """What to sweep.

    Attributes:
        config: what every trial has in common; its name is the sweep's.
        sweep: how to search.
        words: how the configuration was given, as jobs/train.py would take it.
    """

    config: Config
    sweep: Sweep
    words: tuple[str, ...]


def parse(argv: list[str]) -> Asked:
    """The arguments of jobs/tune.py. Prints help and exits where that is asked for.

    Raises:
        ConfigError: an unknown recipe or key, a bad file, values that contradict each other.
        DataError: `auto` on something that is no data set.
    """
    wants_help = not {"-h", "--help"}.isdisjoint(argv[1:])
    path = given("--sweep-file", argv)
    default = _Options(load(Path(path)) if path else Sweep.model_validate({}))
    if wants_help:
        with suppress(SystemExit):  # and then the help of a training job, which ends the process
            tyro.cli(_Options, args=["--help"], prog="tune.py, the search", default=default)
    options, words = tyro.cli(_Options, args=argv, default=default, return_unknown_args=True, add_help=False)
    config = parse_config(words, "tune.py", _HELP)
    if given("--name", words) is None:
        config = Config.model_validate({**config.model_dump(), "name": f"{config.name}-sweep"})
    return Asked(config, options.sweep, tuple(words))
