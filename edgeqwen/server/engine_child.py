"""The process that holds the weights: requests in on stdin, events out on stdout, framed; it ends with its parent.

Run by `isolated` as `python -m edgeqwen.server.engine_child`.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from typing import Any, BinaryIO

from edgeqwen.errors import EdgeqwenError, EngineDownError
from edgeqwen.server.engine import model_of
from edgeqwen.server.frames import frame, frames, plain, plain_error, typed
from edgeqwen.server.job import Event
from edgeqwen.server.request import EngineLoad, EngineSettings, Request
from edgeqwen.server.worker import Worker


class _Parent:
    """The other end of the two pipes. `gone` is set when it closed its end, as its death does."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self.gone = threading.Event()
        self._source = source
        self._sink = sink
        self._lock = threading.Lock()
        self.inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()  # None: no more will come
        threading.Thread(target=self._read, name="edgeqwen-pipe", daemon=True).start()

    def send(self, **data: Any) -> None:
        """Write a frame; into nothing where the parent is gone."""
        with self._lock:
            try:
                self._sink.write(frame(data))
                self._sink.flush()
            except OSError:
                self.gone.set()

    def deliver(self, events: list[Event], load: EngineLoad) -> None:
        """Send a step's events."""
        answers = [
            [number, {"error": plain_error(event)} if isinstance(event, EdgeqwenError) else plain(event)]
            for number, event in events
        ]
        self.send(answers=answers, load=plain(load))

    def loading(self, _done: int, _total: int, _stage: str) -> None:
        """Stop loading for nobody."""
        if self.gone.is_set():
            raise EngineDownError("the server has ended")

    def _read(self) -> None:
        try:
            for data in frames(self._source):
                self.inbox.put(data)
        finally:
            self.gone.set()
            self.inbox.put(None)


def main() -> None:
    """Load what the first frame names, say so, then answer until the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C and systemd reach the whole group: the parent decides
        signal.signal(number, signal.SIG_IGN)
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever native code prints goes to the log, not between the frames
    parent = _Parent(sys.stdin.buffer, sink)
    first = parent.inbox.get()
    if first is None:
        return
    try:
        settings = typed(EngineSettings, first["load"])
        model = model_of(settings, parent.loading)
    except EdgeqwenError as error:
        parent.send(failed=plain_error(error))
        return
    worker = Worker(
        model, parallel=settings.parallel, waiting_max=settings.waiting_max,
        deliver=parent.deliver, failed=lambda: parent.inbox.put(None),
    )  # fmt: skip
    parent.send(ready=plain(worker.info))
    _serve(worker, parent)
    worker.close()


def _serve(worker: Worker, parent: _Parent) -> None:
    while (data := parent.inbox.get()) is not None:
        if "ask" in data:
            try:
                worker.ask(data["ask"], typed(Request, data["request"]))
            except EdgeqwenError as error:
                parent.deliver([(data["ask"], error)], EngineLoad())
        if "cancel" in data:
            worker.cancel(data["cancel"])


if __name__ == "__main__":
    main()
