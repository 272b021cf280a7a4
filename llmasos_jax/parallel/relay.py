"""A relay between this process and process 0's coordination service.

JAX's client ends its process with a stack trace, at once, when the connection to the coordination
service breaks. Through a relay it sees a connection that stays open, so there is time to say what
has happened.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time

_CONNECT_S = 10.0


class Relay:
    """Passes on what comes to a port of this machine; a broken far end is kept from the near one.

    Args:
      host, port: the far end; need not be there yet.

    Attributes:
      address: "127.0.0.1:port" to connect to.
    """

    def __init__(self, host: str, port: int) -> None:
        self._far = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="llmasos-relay", daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(near,), daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        far = self._connect()
        if far is None:
            near.close()
            return
        other = {near: far, far: near}
        with contextlib.suppress(OSError, ValueError):
            while True:
                for end in select.select([near, far], [], [])[0]:
                    data = _read(end)
                    if data:
                        other[end].sendall(data)
                    elif end is near:
                        near.close()
                        far.close()
                        return
                    else:
                        raise OSError("the far end is gone")
        far.close()
        _KEPT.append(near)  # or it would be closed when it is collected

    def _connect(self) -> socket.socket | None:
        until_s = time.monotonic() + _CONNECT_S
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError):
                far = socket.create_connection(self._far, timeout=_CONNECT_S)
                far.settimeout(None)
                far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return far
            time.sleep(0.1)
        return None


_KEPT: list[socket.socket] = []


def _read(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except OSError:
        return b""
