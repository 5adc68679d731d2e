"""What goes wrong with a request, in the form in which OpenAI's server tells it."""

import json
from typing import Any

from starlette.responses import Response


class ApiError(Exception):
    """An answer other than 200; the message is one sentence.

    ``code`` and ``param`` are those that OpenAI's server gives, for programs that look at them.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message if len(message) <= 600 else message[:597] + "...")
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kinds = {429: "rate_limit_error", 500: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def error_response(error: ApiError) -> Response:
    """The answer that says ``error``."""
    headers = {"retry-after": "1"} if error.status == 429 else None
    body = json.dumps(error.body())  # in ASCII: what it quotes of a request may be no proper text
    return Response(body, error.status, headers, media_type="application/json")
