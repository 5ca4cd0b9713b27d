"""What a client is told when it is refused: OpenAI's shape, one sentence, a status that says whose fault it is.

400 not JSON, or what this model cannot do (too long, a template that refuses it)   401 no key, or another one
404 no such model, no such path   405 not this method   413 too large   421 another host's name   422 a field is wrong
429 the queue is full (Retry-After)   500 our fault   503 closing, or the model cannot go on
"""

from __future__ import annotations

import json
import re
from typing import Any

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}  # fmt: skip


# For the OpenAPI description: every status, and the shape of its body.
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, what in {
        400: "not JSON, or nothing that this model can do", 401: "no key, or another one", 404: "no such model",
        408: "the body did not come in time", 413: "the body is too large", 421: "sent to another host's name",
        422: "a field is wrong", 429: "the queue is full", 500: "the model could not go on", 503: "closing",
    }.items()
}  # fmt: skip
ERROR = {
    "type": "object", "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message", "type", "param", "code"], "properties": {
        "message": {"type": "string"}, "type": {"type": "string"},
        "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
    }}},
}  # fmt: skip


class Refusal(Exception):
    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None):  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        more = {} if self.retry is None else {"Retry-After": str(self.retry)}
        return more | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def encoded(self) -> bytes:
        return json.dumps(self.body()).encode()


def of_validation(errors: list[Any]) -> Refusal:
    """pydantic's list -> the first problem in words, and how many more."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return Refusal(400, f"the body is not JSON: {first['ctx']['error']}")
    if isinstance(first.get("input"), bytes):
        return Refusal(400, "the body was not sent as JSON: Content-Type: application/json")
    # Of a field that may be of several types: what is wrong by the type that it is of, not each type that it is not.
    own = [one for one in errors if one["loc"][:2] == first["loc"][:2] and not one["type"].endswith("_type")]
    first = own[0] if own else first
    place = [
        str(part) for part in first["loc"] if part != "body" and not re.search(r"[\[(]|^constrained-|^str$", str(part))
    ]
    where = ".".join(place) or "the body"
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        text = "no such field here: it would be ignored"
    more = f" (and {len(errors) - 1} more problems)" if len(errors) > 1 else ""
    return Refusal(422, f"{where}: {text}{more}", param=where if place else None)
