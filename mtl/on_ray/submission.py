"""Handing a job of `jobs/` to a head: what to call it, what command to run there, and the request itself."""

import logging
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from mtl import arguments as training
from mtl.errors import ConfigError, MtlError, ResourceError, RunOwned
from mtl.on_ray.head import Head, Job
from mtl.on_ray.package import Package
from mtl.record import check_name, read
from mtl.store import open_store

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STOP_WAIT_S = 120
"""Between SIGTERM and SIGKILL when a job is stopped; Ray's own 3 s are too short for a commit."""

_OWN_RUNS = ("train", "tune")
"""Jobs that own the run they are named after, so that a second one of that name would only be turned away."""


@final
@dataclass(frozen=True)
class Command:
    """A job of `jobs/` with its arguments.

    Attributes:
        script: name below jobs/, without .py.
        words: its arguments.
        name: of the run, or of the script where it has no run.
        storage: where the run is kept, as the job will see it; None where that is not known here.
    """

    script: str
    words: tuple[str, ...]
    name: str
    storage: str | None = None

    @classmethod
    def parse(cls, words: Sequence[str], package: Package) -> "Command":
        """The command that `words` mean where `package` is. Prints help and exits where that is asked for.

        Raises:
            ConfigError: no such job, a bad run name, or what the job itself would refuse at once.
        """
        paths = [Path(name) for name in package.files if re.fullmatch(r"jobs/(?!submit)\w+\.py", name)]
        jobs = [path.stem for path in paths]
        script = words[0] if words else ""
        if script not in jobs:
            raise ConfigError(
                f"There is no job to submit called '{script}'.",
                got=f"{package.root}/jobs",
                expected=", ".join(jobs) or "a working directory with jobs/*.py",
                do="name one after the --, as in: jobs/submit.py -- train shapes",
            )
        rest = _as_uploaded(words[1:], package)
        name, storage = _option(rest, "name"), _option(rest, "storage")
        if script == "train" and rest[:1] == ["auto"] and name is None:
            raise ConfigError("A submitted `train auto` needs a name.", do="add --name NAME")
        if script == "train" and rest[:1] != ["auto"]:
            name, storage = _of_training(rest, package.root)
        check_name(name or script)
        return cls(script, tuple(rest), name or script, storage)

    @property
    def owns_run(self) -> bool:
        """Whether only one job of this name can run at a time."""
        return self.script in _OWN_RUNS

    def line(self, python: str) -> str:
        """The command as a shell takes it."""
        return shlex.join([python, f"jobs/{self.script}.py", *self.words])


def choose_id(command: Command, jobs: Sequence[Job], say: Callable[[str], None]) -> str:
    """An id that no job on the head has: the name, and the attempt that the run is expected to begin.

    Args:
        say: told where the run's attempts can not be read from here.

    Raises:
        RunOwned: a job of this run is not over.
    """
    running = next((job for job in jobs if job.run == command.name and not job.over), None)
    if running and command.owns_run:
        raise duplicate(running.id, command.name)
    used = [int(match[1]) for job in jobs if (match := re.fullmatch(rf"{re.escape(command.name)}-a(\d+)", job.id))]
    return f"{command.name}-a{1 + max([_attempts(command, say), *used])}"


def submit(head: Head, command: Command, job_id: str, package: Package, python: str) -> None:
    """Upload the package and start the job. Nothing of this machine's environment goes with it.

    Raises:
        RunOwned: another submission was faster.
        ResourceError: the head refused it.
    """
    with tempfile.TemporaryDirectory(prefix="mtl-submit-") as scratch:
        archive = Path(scratch) / "working-dir.zip"
        package.write(archive)
        try:
            client(head).submit_job(
                # exec, so that signals reach Python itself and its exit status is the job's.
                entrypoint=f"exec {command.line(python)}",
                submission_id=job_id,
                runtime_env={
                    "working_dir": str(archive),
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
                },
            )
        except (RuntimeError, OSError) as error:
            if "already exists" in str(error):
                raise duplicate(job_id, command.name) from error
            raise ResourceError(
                f"The head {head.address} did not take the job.",
                got=str(error).strip().splitlines()[-1][:500],
                do="look at the head's dashboard, and submit again",
            ) from error


def find(jobs: Sequence[Job], name: str) -> Job:
    """The job with this id, or else the newest of the run.

    Raises:
        ConfigError: there is none.
    """
    exact = [job for job in jobs if job.id == name]
    of_run = [job for job in jobs if job.run == name]
    if not exact and not of_run:
        raise ConfigError(
            f"The head has no job of the name '{name}'.",
            expected=", ".join(job.id for job in jobs[-12:]) or "a job: none was submitted yet",
        )
    return (exact or of_run)[-1]


def client(head: Head) -> "JobSubmissionClient":
    """Ray's own client of the head.

    Raises:
        ResourceError: it can not connect.
    """
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)  # they would override the address
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(head.address, headers=head.headers)
    except (RuntimeError, OSError) as error:
        raise ResourceError(f"The head {head.address} can not be used.", got=error) from error


def duplicate(job_id: str, name: str) -> RunOwned:
    """The error about a run that another job owns."""
    return RunOwned(
        f"The run '{name}' has a job already: {job_id}.",
        got="it is not over",
        do=f"`jobs/submit.py follow {name}` shows it, `jobs/submit.py stop {name}` stops it; or choose another --name",
    )


def _of_training(words: list[str], root: Path) -> tuple[str, str]:
    # The job's own parser, so that what it would refuse after a minute on the head is refused at once.
    if words[:1] == ["--config"] and len(words) > 1:
        words = ["--config", str(root / words[1]), *words[2:]]
    config = training.parse(words).config
    return config.name, _option(words, "storage") or config.storage


def _attempts(command: Command, say: Callable[[str], None]) -> int:
    """Attempts that the run began so far, 0 where its storage can not be read from here."""
    # A folder is one of the head's own, even where this machine has one of that name.
    if command.storage is None or "://" not in command.storage:
        return 0
    try:
        record = read(open_store(command.storage).child(command.name))
    except MtlError as error:
        say(f"        attempts are counted by the head's jobs alone: {error.what}")
        return 0
    return record.attempt if record else 0


def _option(words: Sequence[str], name: str) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == f"--{name}":
            return following
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def _as_uploaded(words: Sequence[str], package: Package) -> list[str]:
    """The arguments, with the file of --config as it is called in the working directory."""
    file = _option(words, "config")
    if file is None:
        return list(words)
    path = Path(file) if Path(file).is_file() else package.root / file
    inside = os.path.relpath(path.resolve(), package.root.resolve())
    if path.is_file() and inside not in package.files:
        raise ConfigError(
            "The configuration is not among the files that are uploaded, so the job would not find it.",
            got=path,
            expected=f"a file below {package.root} that no ignore file excludes",
            do="copy it there",
        )
    return [word.replace(file, inside) if word in (file, f"--config={file}") else word for word in words]
