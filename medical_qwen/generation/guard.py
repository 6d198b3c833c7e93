"""The API key of a vLLM server, asked for on every path: vLLM itself asks under /v1 only and leaves others that answer
questions (/invocations, /tokenize) open."""

import json
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping

_OPEN = ("/health", "/ping")


class RequireKey:
    """ASGI middleware: without `Authorization: Bearer $VLLM_API_KEY` there is nothing but the state of health."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: MutableMapping, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan" or scope["path"] in _OPEN:
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"")
        if secrets.compare_digest(given, self._expected):
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        body = json.dumps({"error": {"message": "this server wants its API key", "type": "Unauthorized", "code": 401}})
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body.encode()})
