"""Who may use the server: programs on this machine and its own page, but no page of another origin.

A web page can make its reader's browser send requests to this machine. The browser then names the page in ``Origin``;
and a page whose name was bound to this machine's address meanwhile (DNS rebinding) shows in ``Host``.
"""

import ipaddress
import socket

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from torchgpt.serving.errors import ApiError, error_response

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"),
]


def split_port(host: str) -> str:
    """The name in a ``Host`` header, in lower case, without port and brackets."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return name.removeprefix("[").removesuffix("]").lower()


class Guard:
    """ASGI middleware that answers 403 to requests of other origins, and 421 to those for other hosts."""

    def __init__(self, app: ASGIApp, address: str):
        """``address``: the IP address the server listens on."""
        self._app = app
        self._loopback = ipaddress.ip_address(address).is_loopback
        self._names = {"localhost"} if self._loopback else {"localhost", socket.gethostname().lower()}

    def _is_ours(self, name: str) -> bool:
        try:  # a rebound name is never a number
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return address.is_loopback or not self._loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_guarded(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        headers, app = Headers(scope=scope), self._app
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(split_port(host)):
            app = error_response(
                ApiError(421, f"This server does not go by the name {host[:100]!r}: use its address or localhost.")
            )
        elif origin is not None and origin.lower() != f"http://{host}".lower():
            app = error_response(ApiError(403, "Pages of other origins may not use this server."))
        await app(scope, receive, send_guarded)
