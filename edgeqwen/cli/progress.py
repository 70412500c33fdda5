"""A bar on stderr for work that takes longer than a moment; silent where stderr is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgeqwen.cli.terminal import escaped, note, takes_ansi

if TYPE_CHECKING:
    import rich.progress

PATIENCE_S = 0.5  # work that is done sooner shows nothing


class Progress:
    """Callable as `progress(done, total, label)`; a bar appears once the work has taken half a second.

    A terminal that takes no ANSI codes gets a line for each stage.
    """

    def __init__(self) -> None:
        self._bar: rich.progress.Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._started = time.monotonic()
        self._wanted = sys.stderr.isatty()
        self._drawn = takes_ansi(sys.stderr)

    def __call__(self, done: int, total: int, label: str) -> None:
        if not self._wanted or (self._bar is None and time.monotonic() - self._started < PATIENCE_S):
            return
        if not self._drawn:
            if label not in self._tasks:
                self._tasks = {label: None}
                note(label)
            return
        if self._bar is None:
            self._bar = self._open()
        if label not in self._tasks:
            for task in self._tasks.values():  # one stage after another: the one before is done
                self._bar.remove_task(task)
            self._tasks = {label: self._bar.add_task(escaped(label), total=total)}
        self._bar.update(self._tasks[label], completed=done, total=total)

    @staticmethod
    def _open() -> rich.progress.Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        bar.start()
        return bar

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
