"""What every request passes first: its size, and its key."""

from __future__ import annotations

import hmac
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmasos_jax.serve.failures import RefusedError, answer

OPEN = ("/", "/health", "/metrics", "/openapi.json")


class Gates:
    """Refuses bodies that are too large before they are in memory, and requests without a key.

    Args:
      app: what comes behind.
      max_body_bytes: of a request.
      api_keys: one of them has to be sent; none lets everybody in.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, api_keys: tuple[str, ...]) -> None:
        self._app, self._most = app, max_body_bytes
        self._keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        try:
            if scope["path"] not in OPEN:
                self._check_key(headers.get("authorization", b""))
            body = await self._body(headers.get("content-length", b""), receive)
        except RefusedError as refusal:
            await answer(refusal)(scope, receive, send)
            return
        if body is None:
            return  # the client went before it had said all
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return parts.pop() if parts else await receive()

        await self._app(scope, replay, send)

    def _check_key(self, sent: bytes) -> None:
        if not self._keys:
            return
        scheme, _, key = sent.partition(b" ")
        # All are compared, each in constant time: how long it takes tells nothing.
        found = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        if scheme.lower() != b"bearer" or not any(found):
            what = "no API key was sent" if not sent else "the API key is not known"
            raise RefusedError(
                401, f"{what}; send Authorization: Bearer KEY", code="invalid_api_key"
            )

    async def _body(self, length: bytes, receive: Receive) -> bytes | None:
        too_large = RefusedError(
            413, f"the body is larger than {self._most} bytes, the most that this server takes"
        )
        if length.isdigit() and int(length) > self._most:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._most:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)
