"""Job scripts as a user starts them: a process of their own, what it prints, how it ends."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl.config import Augment, Config, Model, Optimizer, Order, Task

ROOT = Path(__file__).resolve().parents[2]

_BLOCKER = """\
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"the test blocks {{name}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All that it printed."""
        return self.out + self.err


def job(
    script: str,
    *args: object,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    timeout_s: float = 300,
) -> Done:
    """Run jobs/`script`; `env` adds to this process's variables, or removes those that are None."""
    done = subprocess.run(
        _command(script, args),
        cwd=cwd or ROOT,
        env=_environment(env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def started(
    script: str, *args: object, cwd: Path | None = None, env: Mapping[str, str | None] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Jobs/`script` running, its two streams as one; killed at the end if it still runs."""
    process = subprocess.Popen(
        _command(script, args),
        cwd=cwd or ROOT,
        env=_environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """The lines up to the one that holds `text`."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"'{text}' was never printed:\n{''.join(lines)}")


def without(folder: Path, *modules: str) -> dict[str, str | None]:
    """Variables of a process that can not import `modules`; `folder` is the test's own."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_BLOCKER.format(modules=modules))
    return {"PYTHONPATH": str(folder)}


def tiny_config(data: Path | str, storage: Path | str, **changes: Any) -> Config:
    """A run of a second on the data set of `tests.helpers.datasets.tiny`: group norm, four tasks, six steps."""
    values: dict[str, Any] = {
        "recipe": "tiny",
        "name": "tiny",
        "data": str(data),
        "storage": str(storage),
        "epochs": 2,
        "global_batch": 32,
        "tasks": {
            "object": Task(kind="multiclass", label="object"),
            "kind": Task(kind="binary", label="kind"),
            "angle": Task(kind="circular", label="angle", flip="negate"),
            "amount": Task(kind="regression", label="amount", flip="negate"),
        },
        "augment": Augment(size_px=16, crop="none", eval_resize_px=16),
        "model": Model(
            backbone="mtl.model.resnet9:resnet9",
            backbone_args={"width": 8, "norm": "group"},
            batch_norm="local",  # there is none
        ),
        "optimizer": Optimizer(lr=1e-3),
        "order": Order(lanes=4, block_row_groups=None),
    }
    return Config(**(values | changes))


def ended_well(config: Config, *, attempts: int) -> None:
    """Whether a run on Ray has finished, belongs to nobody, and has left nothing behind in the cluster."""
    import ray

    from tests.helpers.nodes import claims

    record = json.loads((Path(config.storage) / config.name / "run.json").read_text())
    assert (record["status"], record["owner"], record["attempt"]) == ("finished", None, attempts)
    if ray.is_initialized():
        assert not claims()


def undisturbed(config: Config) -> dict[str, Any]:
    """The result of the same run in this process, to which nothing happens."""
    from mtl import local
    from mtl.console import RunConsole

    alone = config.model_copy(update={"name": "alone", "runtime": "local"})
    return local.train(alone, RunConsole(io.StringIO()))


def write_config(path: Path, config: Config) -> Path:
    """`config` as a file for `--config`."""
    path.write_text(config.to_yaml())
    return path


def _command(script: str, args: tuple[object, ...]) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / script), *map(str, args)]


def _environment(changes: Mapping[str, str | None] | None) -> dict[str, str]:
    merged = {**os.environ, "RAY_ADDRESS": None, **(changes or {})}
    return {name: value for name, value in merged.items() if value is not None}
