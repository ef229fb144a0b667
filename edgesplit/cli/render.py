"""Tables and progress for people; JSON for programs. stdout is data, stderr is talk."""

from __future__ import annotations

import json
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from edgesplit.broadcast.transition import Phase, Step
from edgesplit.errors import EdgesplitError

# What is printed is text as it is: a path may hold brackets and colons. soft_wrap=True where it must not be broken.
out = Console(markup=False, emoji=False, highlight=False)
talk = Console(stderr=True, markup=False, emoji=False, highlight=False)

WORD = 30  # a longer word is broken where the terminal is too narrow


def print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2))


def tell(notes: Iterable[str]) -> None:
    """What somebody should know, on standard error."""
    for note in notes:
        talk.print(f"note: {note}", soft_wrap=True)


def ask(question: str) -> None:
    """Go on only after a yes. On standard error, so that standard output stays data.

    Raises typer.Abort after a no, EdgesplitError where nobody answers.
    """
    typer.echo(f"{question} [y/N] ", nl=False, err=True)
    answer = sys.stdin.readline()
    if not answer:
        typer.echo(err=True)  # nobody is there to end the line
        raise EdgesplitError("nobody answered, so nothing was done", "--yes goes on without asking")
    if answer.strip().lower() not in ("y", "yes"):
        raise typer.Abort


def show(title: str, columns: list[str], rows: list[list[str]], note: str = "", on: Console = out) -> None:
    """A table. A column of numbers is called ">name" and never broken; the others are broken between words."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", pad_edge=False, box=None)
    for place, column in enumerate(columns):
        number = column.startswith(">")
        whole = all(" " not in row[place] and len(row[place]) <= WORD for row in rows)
        justify: JustifyMethod = "right" if number else "left"
        table.add_column(column.removeprefix(">"), justify=justify, no_wrap=number or whole, overflow="fold")
    for row in rows:
        table.add_row(*row)
    on.print(table)
    if note:
        on.print(note, style="dim")


def bullets(title: str, sentences: Iterable[str]) -> None:
    """A list, each item indented under its mark."""
    if title:
        out.print(title, style="bold")
    for sentence in sentences:
        out.print(
            textwrap.fill(sentence, out.width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False),
            soft_wrap=True,
        )


class Bars:
    """Progress of a push: a bar per host that is sent something, a line per step done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._tasks: dict[str, Any] = {}

    def begin(self, step: Step) -> None:
        if step.phase is Phase.SHIP and step.size:
            with self._lock:
                self._tasks[step.host] = self._progress.add_task(f"send to {step.host}", total=step.size)

    def note(self, step: Step, text: str) -> None:
        with self._lock:
            if step.host not in self._tasks:
                self._tasks[step.host] = self._progress.add_task(step.host, total=None)
            self._progress.update(self._tasks[step.host], description=f"{step.host}: {text}")

    def sent(self, step: Step, size: int) -> None:
        with self._lock:
            self._progress.advance(self._tasks[step.host], size)

    def end(self, step: Step) -> None:
        with self._lock:
            if not step.size and step.host in self._tasks:
                self._progress.remove_task(self._tasks.pop(step.host))
        if step.phase not in (Phase.LOCK, Phase.UNLOCK):
            self._progress.console.print(f"  {step}", style="dim")

    def undo(self) -> None:
        self._progress.console.print("  putting the hosts back as they were ...")


def _progress() -> Progress:
    """Of bytes; nothing where there is no terminal."""
    columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=talk, transient=True, disable=not talk.is_terminal)


@contextmanager
def bars() -> Iterator[Bars]:
    with _progress() as progress:
        yield Bars(progress)


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of so many bytes; is told of each piece."""
    with _progress() as progress:
        task = progress.add_task(what, total=total)
        yield lambda size: progress.advance(task, size)
