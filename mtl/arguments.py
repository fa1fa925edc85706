"""The command line of a training job: a recipe and changes to it, or a saved configuration and changes to it."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from typing import Annotated

import tyro

from mtl import config as configs
from mtl import recipes
from mtl.config import Config
from mtl.data.manifest import Manifest
from mtl.errors import ConfigError
from mtl.store import open_store

_HELP = """\
usage: python jobs/train.py RECIPE [options]
       python jobs/train.py auto --data URI [options]
       python jobs/train.py --config FILE [options]

Train a multi-task image model on Ray (or in this process: --runtime local), resume it, and test it.

recipes
{recipes}

options (all of them, with their defaults: python jobs/train.py RECIPE --help)
  --name NAME                 the run; rerunning a stopped run resumes it, a finished one shows its result
  --data URI                  the data set, from jobs/prepare.py: a folder or s3://bucket/prefix
  --storage URI               where runs are kept (default: runs)
  --resources.workers N       data-parallel workers; --resources.gpu gives each a GPU
  --epochs N  --optimizer.lr X  --tasks.NAME.weight X  --global-batch N ...
  --preview FILE.png          draw augmented samples with their labels, and stop
  --dry-run                   check everything that can be checked without training, data or not, and stop

examples
  python jobs/train.py shapes --epochs 3
  python jobs/train.py cifar10 --data s3://bucket/cifar10 --storage s3://bucket/runs
  python jobs/train.py auto --data data/mine --preview mine.png
  python jobs/submit.py -- train shapes
"""


@dataclass(frozen=True)
class Arguments:
    """What to train, or to preview.

    Args:
        config: the configuration.
        preview: draw augmented samples with their labels into this PNG file, and stop.
        dry_run: check everything that can be checked without training, data or not, and stop.
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    preview: Path | None = None
    dry_run: bool = False


def parse(argv: list[str]) -> Arguments:
    """The arguments of jobs/train.py. Prints help and exits where that is asked for.

    Raises:
        ConfigError: an unknown recipe, a bad file, values that contradict each other.
        DataError: `auto` on something that is no data set.
    """
    base, rest = _base(argv, _HELP)
    about = recipes.DESCRIPTIONS.get(argv[0])
    asked = tyro.cli(Arguments, default=Arguments(base), args=rest, prog=f"train.py {argv[0]}", description=about)
    return replace(asked, config=_at_home(asked.config))


def parse_config(argv: list[str], job: str, usage: str) -> Config:
    """The configuration that another job than jobs/train.py is to work on, given as it is to jobs/train.py.

    Args:
        job: name of the script.
        usage: its help; `{recipes}` in it becomes the list of recipes.

    Raises:
        ConfigError, DataError: as `parse`.
    """
    base, rest = _base(argv, usage)
    about = recipes.DESCRIPTIONS.get(argv[0])
    return _at_home(tyro.cli(Config, default=base, args=rest, prog=f"{job} {argv[0]}", description=about))


def _base(argv: list[str], usage: str) -> tuple[Config, list[str]]:
    """The configuration that the first argument names, and the arguments that change it."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage.format(recipes=indent(recipes.listed(), "  ")))
        sys.exit(0)
    first, rest = argv[0], argv[1:]
    if first.startswith("--config"):
        path = given("--config", argv)
        if path is None:
            raise ConfigError(
                "--config needs a file.",
                got=" ".join(argv),
                expected="train.py --config FILE",
                do="name a config.yaml that a run saved, or one of your own",
            )
        base, rest = configs.load(Path(path)), argv[1:] if "=" in first else argv[2:]
    else:
        base = _auto(rest) if first == "auto" else recipes.get(first)
    return _own_backbone(base, rest), rest


def _own_backbone(base: Config, rest: list[str]) -> Config:
    """`base` without arguments for its backbone where another one is asked for: they would mean nothing to that."""
    if given("--model.backbone", rest) in (None, base.model.backbone):
        return base
    return base.model_copy(update={"model": base.model.model_copy(update={"backbone_args": {}})})


def _at_home(config: Config) -> Config:
    mixture = {
        name: source.model_copy(update={"data": anchored(source.data)}) for name, source in config.mixture.items()
    }
    anchors: dict[str, object] = {name: anchored(getattr(config, name)) for name in ("data", "storage")}
    anchors["mixture"] = mixture
    if config.model.init_from is not None:
        anchors["model"] = config.model.model_copy(update={"init_from": anchored(config.model.init_from)})
    return config.model_copy(update=anchors)


def anchored(address: str) -> str:
    """`address`, made absolute if it is a relative folder, so that it means the same to every worker.

    A submitted job runs in a copy of its working directory that Ray deletes; its folders belong below ~/mtl instead.
    """
    if "://" in address:
        return address
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return str((Path.home() / "mtl" if submitted else Path.cwd()) / Path(address).expanduser())


def given(flag: str, argv: list[str]) -> str | None:
    """The value of `flag` in `argv`, None if it is not there."""
    for at, text in enumerate(argv):
        if text == flag:
            return argv[at + 1] if at + 1 < len(argv) else None
        if text.startswith(f"{flag}="):
            return text.removeprefix(f"{flag}=")
    return None


def _auto(rest: list[str]) -> Config:
    data = given("--data", rest)
    if data is None:
        raise ConfigError(
            "The recipe auto needs a data set.",
            got=" ".join(["auto", *rest]),
            expected="train.py auto --data URI",
            do="write a data set with jobs/prepare.py, and name its address",
        )
    config = recipes.auto(data, Manifest.load(open_store(anchored(data))))
    path = Path(f"{config.name}.yaml")
    if path.exists():
        sys.stdout.write(f"{path} is already there and stays as it is; to train with it: --config {path}\n")
    else:
        path.write_text(config.to_yaml(), encoding="utf-8")
        sys.stdout.write(f"wrote {path}: edit it and train with: python jobs/train.py --config {path}\n")
    return config
