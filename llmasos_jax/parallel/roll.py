"""The roll of a run's processes: each knows when another is lost, and ends with its name.

JAX notices a lost process after minutes and ends the others with a stack trace; a thread that waits
in a collective cannot say anything at all. So each process keeps a connection of its own to process
0, beside JAX's. What the system closes is noticed at once, what stands still after
`hosts.heartbeat_timeout_s`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from llmasos_jax.config.devices import HostsConfig
from llmasos_jax.errors import ConfigError, TrainingFailedError
from llmasos_jax.parallel.environment import Place
from llmasos_jax.parallel.lines import Line, Message
from llmasos_jax.parallel.rollserver import RollServer

_FAR_FUTURE = sys.maxsize


class Roll:
    """This process's place in the roll; made by `answer`.

    Attributes:
      place: which process this is.
      names: the host of each process.
      advice: gives what the last line says after a loss, such as where the run goes on from.
    """

    def __init__(
        self,
        place: Place,
        names: list[str],
        line: Line,
        server: RollServer | None,
        silence_s: float,
    ) -> None:
        self.place, self.names, self._line, self._server = place, names, line, server
        self._silence_s, self._tick_s = silence_s, min(1.0, silence_s / 5)
        self.advice: Callable[[], str] = lambda: "start the run again"
        self._changed = threading.Condition()
        self._gathered: dict[str, list[Any]] = {}
        self._turn = 0
        self._paused, self._begun, self._stop_at, self._stop_why = False, 0, _FAR_FUTURE, ""
        self._left = self._has_failed = False
        self._wake_out, self._wake_in = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="llmasos-watch", daemon=True)
        self._thread.start()

    @property
    def is_first_here(self) -> bool:
        """Whether no process with a lower number runs on this host."""
        return self.names.index(self.names[self.place.index]) == self.place.index

    def gather(self, value: Any) -> list[Any]:
        """Waits for all processes; returns their values (JSON), in order."""
        self._turn += 1
        key = str(self._turn)
        self._line.send({"gather": key, "value": value})
        with self._changed:
            self._changed.wait_for(lambda: key in self._gathered)
            return self._gathered.pop(key)

    def request_stop(self, why: str) -> None:
        """Asks all processes to stop after one and the same step. Safe in a signal handler."""
        with contextlib.suppress(OSError):  # after the goodbye
            os.write(self._wake_in, f"{why}\n".encode())

    def begin(self, step: int) -> str | None:
        """Says that a step begins; the reason if it is to be the last one, on all processes."""
        with self._changed:
            self._changed.wait_for(lambda: not self._paused)
            self._begun = step
            return self._stop_why if step >= self._stop_at else None

    def fail(self, why: str) -> None:
        """Tells the others why this process ends; they end too."""
        with self._changed:
            if self._left or self._has_failed:
                return
            self._has_failed = True
        self._line.send({"fail": why})
        # Its own news coming back says that it was passed on.
        with self._changed:
            self._changed.wait_for(lambda: self._left, timeout=2.0)
        self._let_others_read()

    def wait_for_a_loss(self) -> None:
        """Gives the watch time to find out who is lost: it then ends this process."""
        time.sleep(self._silence_s + 2 * self._tick_s + 1.0)

    def leave(self) -> None:
        """Says goodbye; all processes do, when they are done."""
        with self._changed:
            if self._left or self._has_failed:
                return
        self._line.send({"bye": 1})
        with self._changed:
            self._changed.wait_for(lambda: self._left, timeout=5.0)
        if self._server is not None:
            self._server.thread.join(timeout=5.0)

    def _watch(self) -> None:
        try:
            self._listen_and_beat()
        finally:
            self._line.close()
            for end in (self._wake_in, self._wake_out):
                os.close(end)

    def _listen_and_beat(self) -> None:
        last_s = beat_s = self._line.seen_s = time.monotonic()
        while not self._left:
            ready, _, _ = select.select([self._line, self._wake_out], [], [], self._tick_s)
            now_s = time.monotonic()
            if now_s - last_s > max(self._silence_s / 2, 2 * self._tick_s):
                self._line.seen_s = now_s  # it was this process that stood still
            last_s = now_s
            if self._wake_out in ready:
                why = os.read(self._wake_out, 4096).decode().splitlines()[0]
                self._line.send({"stop": why})
            if self._line in ready:
                self._line.seen_s = now_s
                messages = self._line.receive()
                if messages is None:
                    self._end_of_line()
                    return
                for message in messages:
                    self._on(message)
            if now_s - beat_s >= self._tick_s:
                beat_s = now_s
                self._line.send({"beat": 1})
            if now_s - self._line.seen_s > self._silence_s:
                self._die(self._lost(0, f"nothing came from it for {self._silence_s:g} s"))

    def _end_of_line(self) -> None:
        if self._left or self._has_failed:
            self._set_left()
        else:
            self._die(self._lost(0, "it is no longer running (its connection closed)"))

    def _on(self, message: Message) -> None:
        if "gathered" in message:
            with self._changed:
                self._gathered[message["gathered"]] = message["values"]
                self._changed.notify_all()
        elif "pause" in message:
            with self._changed:
                self._paused = True
                begun = self._begun
            self._line.send({"begun": begun})
        elif "stop_at" in message:
            with self._changed:
                by = message["by"]
                own = by == self.place.index
                self._stop_why = message["why"] if own else f"{message['why']} on {self.who(by)}"
                self._stop_at, self._paused = message["stop_at"], False
                self._changed.notify_all()
        elif "lost" in message:
            self._on_lost(message)
        elif "bye" in message:
            self._set_left()

    def _on_lost(self, message: Message) -> None:
        number = message["lost"]
        if self._left or self._has_failed:
            self._set_left()  # this process was the first to say so
        elif message["failed"]:
            self._die(f"{self.who(number)} failed: {message['why']}")
        elif number == self.place.index:
            self._die(f"the others gave this process up: {message['why']}")
        else:
            self._die(self._lost(number, message["why"]))

    def who(self, number: int) -> str:
        """A process as a person is told of it."""
        return f"process {number} ({self.names[number]})"

    def _lost(self, number: int, why: str) -> str:
        return f"{self.who(number)} is lost: {why}"

    def _set_left(self) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def _die(self, what: str) -> NoReturn:
        """Ends this process, whatever its main thread waits for."""
        advice: list[str] = []
        # The folder that the advice looks into may hang as well.
        looking = threading.Thread(target=lambda: advice.append(self.advice()), daemon=True)
        looking.start()
        looking.join(timeout=2.0)
        line = f"llmasos: error: {what}; {advice[0] if advice else 'start the run again'}"
        cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar may have hidden it
        os.write(2, f"{cursor}{' '.join(line.split())}\n".encode())
        self._let_others_read()
        os._exit(TrainingFailedError.exit_status)

    def _let_others_read(self) -> None:
        # The end of process 0 ends all connections; what was sent last should come before that.
        if self._server is not None:
            time.sleep(1.0)


def answer(place: Place, name: str, hosts: HostsConfig) -> Roll:
    """Joins the roll, and waits until all processes are there.

    Args:
      place: which process this is.
      name: its host's name.
      hosts: how long to wait, and how long a silence is borne.

    Raises:
      ConfigError: process 0 counts otherwise, or its port is taken.
      TrainingFailedError: not all came; the message says which.
    """
    server = None
    if place.index == 0:
        listener = _listen(place)
        server = RollServer(listener, place.count, hosts.start_timeout_s, hosts.heartbeat_timeout_s)
        server.thread.start()
    until_s = time.monotonic() + hosts.start_timeout_s + 5
    while True:
        line = _connect(place, hosts, until_s)
        line.send({"hello": place.index, "count": place.count, "name": name})
        try:
            names = _names(place, line, hosts, until_s)
        except BaseException:
            line.close()
            raise
        if names is not None:
            return Roll(place, names, line, server, hosts.heartbeat_timeout_s)
        line.close()
        time.sleep(0.2)


def _listen(place: Place) -> socket.socket:
    with _bind(place, place.port + 1):
        pass  # JAX's service takes it later, and would end with a stack trace
    return _bind(place, place.port)


def _bind(place: Place, port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        field = "LLMASOS_COORDINATOR" if "LLMASOS" in place.source else "hosts.coordinator"
        raise ConfigError(
            f"process 0 cannot listen at port {port} ({why}); another program or run has it, and "
            f"{place.port} and {place.port + 1} are needed: end that, or another port ({field})"
        ) from error


def _connect(place: Place, hosts: HostsConfig, until_s: float) -> Line:
    trouble = "no answer"
    while time.monotonic() < until_s:
        try:
            # Process 0 asks itself where its own name may not be known.
            host = "localhost" if place.index == 0 else place.host
            return Line(socket.create_connection((host, place.port), timeout=5.0))
        except OSError as error:
            trouble = error.strerror or str(error) or "no answer"
        time.sleep(0.2)
    raise TrainingFailedError(
        f"process {place.index} of {place.count} has not reached process 0 at {place.host}:"
        f"{place.port} in {hosts.start_timeout_s} s ({trouble}, {place.source}); see whether it "
        "runs, and whether that name and port are open from here"
    )


def _names(place: Place, line: Line, hosts: HostsConfig, until_s: float) -> list[str] | None:
    """The hosts of all, when all are there; None if the connection broke before."""
    while time.monotonic() < until_s:
        try:
            messages = line.receive()
        except ValueError as error:
            raise ConfigError(
                f"process {place.index} of {place.count}: another program answers at {place.host}:"
                f"{place.port}, not process 0 of this run ({place.source}); give a port that is "
                "free on that host"
            ) from error
        if messages is None:
            return None
        for message in messages:
            if "all" in message:
                return message["all"]
            if "refused" in message:
                raise ConfigError(
                    f"process {place.index} is not let in: {message['refused']} ({place.source}); "
                    "each process needs its own number and the same count"
                )
            if "missing" in message:
                raise TrainingFailedError(_missing(place, message, hosts))
    return None


def _missing(place: Place, message: Message, hosts: HostsConfig) -> str:
    missing = [str(number) for number in message["missing"]]
    more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
    here = [f"{number} ({name})" for number, name in list(message["here"].items())[:12]]
    refused = [f"{who} was not let in: {why}" for who, why in message["turned_away"].items()][:4]
    return (
        f"after {hosts.start_timeout_s} s {len(message['here'])} of {place.count} processes are "
        f"there; missing: {', '.join(missing[:12])}{more}; there: {', '.join(here)}"
        f"{''.join(f'; {line}' for line in refused)}. Look at the "
        "logs of those that are missing, then start all again (hosts.start_timeout_s waits longer)"
    )
