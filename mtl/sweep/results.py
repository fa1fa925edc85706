"""What a sweep found: the table, the picture, and the command that trains the best configuration."""

import io
import shlex
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mtl.sweep.board import Board
from mtl.sweep.objective import primary, shown
from mtl.sweep.pareto import gains, on_front
from mtl.sweep.picture import draw
from mtl.sweep.record import Trial
from mtl.sweep.space import number_at
from mtl.sweep.terms import Terms

TABLE, PICTURE = "table.txt", "pareto.png"


def ranked(board: Board) -> list[Trial]:
    """Every trial: the finished ones of all tasks best first, then the others, the single-task baselines last."""

    def place(trial: Trial) -> tuple[bool, bool, int, float]:
        score = board.score(trial)
        return trial.kind == "single", trial.status != "finished", -trial.epoch, 0.0 if score is None else -score

    return sorted(board.trials, key=place)


def table(board: Board) -> str:
    """The trials as text: what each was, what became of it, and for each task its weight and its primary metric."""
    kinds, best, pareto = board.objective.kinds, board.best, on_front(board)
    ranges = list(board.terms.space.ranges)
    made = Table(box=SIMPLE_HEAD, title=f"{board.config.name}, on the validation split", title_justify="left")
    made.add_column("trial")
    made.add_column("what")
    for name in ("epochs", board.objective.metric.replace("_", "-"), *(name.rpartition(".")[2] for name in ranges)):
        made.add_column(name, justify="right")
    for task, kind in kinds.items():
        made.add_column(f"{task}\nweight, {primary(kind).replace('_', ' ')}", justify="right")
    for trial in ranked(board):
        value, texts, relative = board.value(trial), board.primary(trial), gains(board, trial) or {}
        marks = ["baseline"] if trial.kind != "sampled" else []
        marks += [trial.status] if trial.status != "finished" else []
        marks += ["front"] if trial.id in pareto else []
        marks += ["best"] if best is not None and trial.id == best.id else []
        cells = [str(trial.epoch), "" if value is None else board.objective.number(value)]
        cells += [f"{trial.values.get(name, number_at(board.config, name)):g}" for name in ranges]
        for task in kinds:
            weight = _weight(board.terms, trial, task)
            gain = f" ({100 * relative[task]:+.1f} %)" if task in relative else ""
            cells.append("" if weight is None else f"{weight:.3g}  {texts.get(task, '')}{gain}")
        made.add_row(trial.id, " ".join(marks), *cells)
    text = io.StringIO()
    Console(file=text, width=400, highlight=False).print(made)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def command(trial: Trial, words: Sequence[str], name: str) -> str:
    """The command that trains the configuration of a trial as a run of its own.

    Args:
        words: how the configuration was given to jobs/tune.py: a recipe, or --config FILE, and changes.
        name: of the new run.
    """
    kept: list[str] = []
    for at, word in enumerate(words):
        if word != "--name" and not word.startswith("--name=") and (at == 0 or words[at - 1] != "--name"):
            kept.append(word)
    values = [part for field, value in trial.values.items() for part in (f"--{field}", f"{value:g}")]
    return shlex.join(["python", "jobs/train.py", *kept, "--name", name, *values])


def conclude(board: Board, words: Sequence[str], say: Callable[[str], None]) -> int:
    """Show what the sweep found, and keep table and picture beside sweep.json. Returns the exit status."""
    best, kinds = board.best, board.objective.kinds
    if not board.finished:
        say(f"stopped: {board.progress()}; the same command goes on")
        return 143
    text = table(board)
    say("\n" + text)
    board.store.put(TABLE, text.encode())
    if best is None:
        say("no trial of all tasks has finished: nothing to choose")
        return 2
    board.store.put(PICTURE, draw(board))
    say(f"table     {board.store.uri}/{TABLE}")
    say(f"picture   {board.store.uri}/{PICTURE}")
    test = "  ".join(f"{task} {shown(primary(kind), best.test[task][primary(kind)])}" for task, kind in kinds.items())
    say(f"best      {best.id}: {board.objective.show(board.value(best))} on validation; on test {test}")
    if best.kind == "uniform":
        say("          the uniform weights were not beaten")
    say(f"train it  {command(best, words, f'{board.config.name}-best')}")
    return 0


def _weight(terms: Terms, trial: Trial, task: str) -> float | None:
    if trial.kind == "single":
        return 1.0 if trial.task == task else None
    return trial.values.get(f"tasks.{task}.weight", terms.config.tasks[task].weight)
