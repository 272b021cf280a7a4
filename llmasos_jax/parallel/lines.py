"""Small JSON messages over a TCP connection, one a line."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

Message = dict[str, Any]


class Line:
    """One end of a connection.

    Attributes:
      seen_s: when something last came, by `time.monotonic`; kept by the owner.
    """

    def __init__(self, connection: socket.socket) -> None:
        # Small messages must not wait for each other; one that cannot be sent at all must not hang.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(5.0)
        self._socket, self._buffer = connection, b""
        self._sending = threading.Lock()
        self.seen_s = 0.0

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def send(self, message: Message) -> bool:
        """Sends a message; False if the connection is no more."""
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._sending:
                self._socket.sendall(data)
        except OSError:
            return False
        return True

    def receive(self) -> list[Message] | None:
        """Waits for some bytes; the messages that are whole now, or None at the end.

        Raises:
          ValueError: it is not such messages.
        """
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *whole, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > 1 << 24:
            raise ValueError("a message of more than 16 MiB")
        found = [json.loads(line) for line in whole]
        if not all(isinstance(message, dict) for message in found):
            raise ValueError("a message that is no object")
        return found

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()
