"""Every failure as OpenAI's clients read it: a status and {"error": {...}}."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llmasos_jax.errors import (
    EngineClosedError,
    LLMasOSError,
    MissingExtraError,
    QueueFullError,
    did_you_mean,
)
from llmasos_jax.serve.bodies import FIELDS

KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "server_error",
    503: "server_error",
    504: "timeout_error",
}
RETRY_AFTER_S = 1

# Fields that take several shapes; of a wrong one pydantic tells about each of them.
SHAPES = {
    "prompt": "a text, a list of texts, a list of ids or a list of lists of ids, none of them "
    "empty",
    "stop": "a text or a list of at most 16 texts, none of them empty",
    "input": "a text or a list of texts, none of them empty",
    "messages": 'a list such as [{"role": "user", "content": "..."}]; content may be a list of '
    'parts such as {"type": "text", "text": "..."}',
}


class RefusedError(Exception):
    """A request that is not served.

    Attributes:
      status: of HTTP.
      message: one line.
      param: the field that is wrong, if it is one.
      code: a short name that programs may read.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def body_of(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of an answer that is an error."""
    kind = KINDS.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal_of(error: Exception) -> RefusedError:
    """What a client is told of an error of ours."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, QueueFullError):
        return RefusedError(429, str(error), code="queue_full")
    if isinstance(error, EngineClosedError):
        return RefusedError(503, str(error), code="shutting_down")
    if isinstance(error, MissingExtraError):
        return RefusedError(501, str(error), code="not_installed")
    if isinstance(error, LLMasOSError):
        return RefusedError(400, str(error))
    return RefusedError(500, "the server failed; its log says how")


def answer(refusal: RefusedError) -> JSONResponse:
    """The response to it."""
    headers = {}
    if refusal.status == 413:
        headers["Connection"] = "close"  # what is still on its way is not read
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.status in (429, 503):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    content = body_of(refusal.status, refusal.message, param=refusal.param, code=refusal.code)
    return JSONResponse(content, refusal.status, headers=headers)


def add_handlers(app: FastAPI) -> None:
    """Makes every failure of an app such an answer."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return answer(refusal_of(error))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert_type = error if isinstance(error, RequestValidationError) else None
        return answer(_invalid(assert_type.errors() if assert_type else ()))

    async def http(request: Request, error: Exception) -> JSONResponse:
        found = error if isinstance(error, HTTPException) else HTTPException(500)
        response = answer(RefusedError(found.status_code, _said(found, request)))
        response.headers.update(found.headers or {})
        return response

    for kind in (RefusedError, LLMasOSError):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _said(error: HTTPException, request: Request) -> str:
    if error.status_code == 404:
        return f"there is nothing at {request.url.path}; /openapi.json lists what there is"
    if error.status_code == 405:
        return f"{request.url.path} does not take {request.method}"
    if error.status_code == 400:
        return "the body is not JSON in UTF-8"
    return str(error.detail)


def _invalid(errors: Iterable[Any]) -> RefusedError:
    """The first thing that is wrong with a body."""
    errors = list(errors)
    if not errors:
        return RefusedError(400, "the request is not valid")
    # A name that is misspelt says more than the one that is missing for it.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = [str(part) for part in first["loc"] if part not in ("body", "path", "query")]
    param = ".".join(path) or None
    if first["type"] == "json_invalid":
        return RefusedError(400, f"the body is not JSON ({first.get('ctx', {}).get('error', '')})")
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(path[-1], FIELDS)
        return RefusedError(400, f'"{param}" is no field of this request{hint}', param=param)
    if first["type"] == "missing" and len(path) < 2:
        where = f'"{param}" is missing' if param else "the body is empty; send a JSON object"
        return RefusedError(400, where, param=param)
    if path and path[0] in SHAPES:
        return RefusedError(400, f'"{path[0]}": give {SHAPES[path[0]]}', param=path[0])
    got = first.get("input")
    shown = "" if isinstance(got, dict | list) else f", got {str(got)[:80]!r}"
    return RefusedError(400, f'"{param}": {first["msg"]}{shown}', param=param)
