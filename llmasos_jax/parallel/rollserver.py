"""Process 0's side of the roll: who is there, who has fallen silent, what all agree on."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from typing import Any

from llmasos_jax.parallel.lines import Line, Message


class RollServer:
    """Keeps the roll of a run's processes in a thread of process 0.

    Args:
      listener: a listening socket.
      count: processes of the run.
      start_timeout_s: after which those that are there are told who is missing.
      silence_s: after which a process is lost.
    """

    def __init__(
        self, listener: socket.socket, count: int, start_timeout_s: float, silence_s: float
    ) -> None:
        self._listener, self._count, self._silence_s = listener, count, silence_s
        self._deadline_s = time.monotonic() + start_timeout_s
        self.tick_s = min(1.0, silence_s / 5)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._lines: dict[int, Line] = {}
        self._names: dict[int, str] = {}
        self._number: dict[Line, int] = {}
        self._gone: set[int] = set()  # those that said goodbye
        self._refused: dict[str, str] = {}  # who was not let in, and why
        self._gathered: dict[str, dict[int, Any]] = {}
        self._stop: Message | None = None
        self._begun: dict[int, int] = {}
        self._started = self._over = False
        self._beat_s = 0.0
        self.thread = threading.Thread(target=self._run, name="llmasos-roll", daemon=True)

    def _run(self) -> None:
        last_s = time.monotonic()
        while not self._over:
            ready = self._selector.select(self.tick_s)
            now_s = time.monotonic()
            # This process itself stood still: the silence of the others says nothing.
            if now_s - last_s > max(self._silence_s / 2, 2 * self.tick_s):
                for line in self._number:
                    line.seen_s = now_s
            last_s = now_s
            for key, _ in ready:
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data, now_s)
            self._look(now_s)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # pyright: ignore[reportAttributeAccessIssue]
        self._selector.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            line = Line(self._listener.accept()[0])
            self._selector.register(line, selectors.EVENT_READ, line)

    def _read(self, line: Line, now_s: float) -> None:
        line.seen_s = now_s
        try:
            messages = line.receive()
        except ValueError:  # somebody else's connection
            messages = None
        if messages is None:
            self._ended(line)
            return
        for message in messages:
            if line in self._number:
                self._on(self._number[line], message)
            elif "hello" in message:
                self._hello(line, message)

    def _ended(self, line: Line) -> None:
        self._selector.unregister(line)
        line.close()
        number = self._number.pop(line, None)
        if number is None:
            return
        del self._lines[number]
        # Before all are there, one may be started again.
        if self._started and number not in self._gone:
            self._lost(number, "it is no longer running (its connection closed)")

    def _hello(self, line: Line, message: Message) -> None:
        number, count, why = message["hello"], message["count"], None
        if count != self._count:
            why = f"it counts {count} processes, process 0 {self._count}"
        elif number in self._lines or self._started:
            why = f"{self._names.get(number, '?')} has come as process {number} already"
        if why is not None:
            line.send({"refused": why})
            self._refused[f"{number} ({message['name']})"] = why
        else:
            self._lines[number], self._number[line] = line, number
            self._names[number] = message["name"]
            if len(self._lines) == self._count:
                self._started = True
                self._tell({"all": [self._names[n] for n in range(self._count)]})

    def _look(self, now_s: float) -> None:
        """What the time brings."""
        if not self._started:
            if now_s > self._deadline_s:
                missing = [n for n in range(self._count) if n not in self._lines]
                here = {str(n): self._names[n] for n in sorted(self._lines)}
                self._tell({"missing": missing, "here": here, "turned_away": self._refused})
                self._over = True
            return
        if now_s - self._beat_s >= self.tick_s:
            self._beat_s = now_s
            self._tell({"beat": 1})
        for number, line in list(self._lines.items()):
            if number not in self._gone and now_s - line.seen_s > self._silence_s:
                self._lost(number, f"nothing came from it for {self._silence_s:g} s")
        self._over = self._over or len(self._gone) == self._count

    def _on(self, number: int, message: Message) -> None:
        if "gather" in message:
            key = message["gather"]
            values = self._gathered.setdefault(key, {})
            values[number] = message["value"]
            if len(values) == self._count:
                del self._gathered[key]
                self._tell({"gathered": key, "values": [values[n] for n in range(self._count)]})
        elif "fail" in message:
            self._lost(number, message["fail"], failed=True)
        elif "stop" in message and self._stop is None:
            self._stop = {"why": message["stop"], "by": number}
            self._tell({"pause": 1})
        elif "begun" in message:
            self._begun[number] = message["begun"]
            if len(self._begun) == self._count and self._stop is not None:
                # Nobody begins a step now, so all hear of it before they begin the next one.
                self._tell({"stop_at": max(self._begun.values()) + 1, **self._stop})
        elif "bye" in message:
            self._gone.add(number)
            self._lines[number].send({"bye": 1})

    def _lost(self, number: int, why: str, *, failed: bool = False) -> None:
        name = self._names[number]
        self._gone.add(number)
        self._tell({"lost": number, "name": name, "why": why, "failed": failed})

    def _tell(self, message: Message) -> None:
        for line in list(self._lines.values()):
            line.send(message)
