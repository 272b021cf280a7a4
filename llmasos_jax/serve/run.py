"""Listens, serves, and stops in order."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from llmasos_jax.errors import GenerationError
from llmasos_jax.serve.app import make_app
from llmasos_jax.serve.service import Service

_LOG = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn, that tells the service first when it is told to stop."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets requests end, the second does not."""
        if self._service.is_draining:
            self.force_exit = True
        self._service.is_draining = True
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
      host: an address of this machine.
      port: 0 takes any that is free.

    Raises:
      GenerationError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(1024)
    except OSError as error:
        found.close()
        raise GenerationError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); take another --port, or "
            "--port=0 for any that is free"
        ) from error
    return found


def address(listening: socket.socket) -> str:
    """Where a socket is reached, as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    service: Service,
    listening: socket.socket,
    *,
    is_verbose: bool = False,
    on_start: Callable[[], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT; requests that run have `drain_s` to end in.

    Args:
      service: what is served.
      listening: where.
      is_verbose: whether each request is a line of the log.
      on_start: called before the first request is taken.
    """
    config = uvicorn.Config(
        make_app(service),
        log_level="info" if is_verbose else "warning",
        access_log=is_verbose,
        timeout_graceful_shutdown=max(1, round(service.options.drain_s)),
        lifespan="off",
        server_header=False,
    )
    if on_start is not None:
        on_start()
    # uvicorn raises the signal again once it has stopped; we end by our own status.
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGTERM, signal.SIGINT)}
    for sig in before:
        signal.signal(sig, signal.SIG_IGN)
    try:
        Server(config, service).run(sockets=[listening])
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
        listening.close()
        if service.writes:
            service.engine.close()
