"""Everything that can go wrong over HTTP, as RFC 9457 `application/problem+json`. One table, one place that maps errors to it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
import psycopg
import redis.exceptions
from clickhouse_connect.driver.exceptions import DatabaseError as ClickHouseRefuses
from clickhouse_connect.driver.exceptions import OperationalError as ClickHouseError
from fastapi.exceptions import RequestValidationError
from psycopg_pool import PoolTimeout
from starlette.exceptions import HTTPException

from aggregates.kernel import Conflict, Invalid, NotFound, Refused, Reused, Unavailable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of problem: its status and title never change; `detail` says what happened this time."""

    status: int
    title: str
    about: str


KINDS = {
    "malformed": Kind(400, "The request cannot be read", "The request is not HTTP that this service understands."),
    "unauthenticated": Kind(401, "Who are you?", "No token, or one that is expired, forged or not for this service."),
    "second-factor": Kind(401, "A second factor is needed", "The password is right: send `code` along, too."),
    "forbidden": Kind(403, "Not with this token", "The token is good, but its role may not do this."),
    "not-found": Kind(404, "There is no such thing", "Nothing is here, or nothing that this caller may see."),
    "method": Kind(405, "Not with this method", "The path exists; `Allow` names the methods that it takes."),
    "slow-request": Kind(408, "The request took too long to arrive", "The body did not arrive in time."),
    "refused": Kind(409, "A rule says no", "The command is well-formed, but a rule of the domain refuses it."),
    "conflict": Kind(409, "Others changed it meanwhile", "The command lost its races: read again and repeat it."),
    "running": Kind(
        409, "The same command is still running", "A request with this Idempotency-Key is not answered yet."
    ),
    "stale": Kind(412, "It is at another version", "`If-Match` names a version that is not the current one."),
    "too-large": Kind(413, "The body is too large", "The body is longer than the limit."),
    "media-type": Kind(415, "The body has another media type", "The body is not declared as what this route takes."),
    "invalid": Kind(422, "The request is malformed", "`errors` points at each field or parameter that is wrong."),
    "reused": Kind(422, "The Idempotency-Key was used before", "The same key came with another request."),
    "too-many": Kind(429, "Too many requests", "Repeat after the seconds in `Retry-After`."),
    "internal": Kind(500, "A bug of ours", "Logged under the `correlation` of this answer."),
    "unavailable": Kind(503, "Something that we need is away", "Repeat after the seconds in `Retry-After`."),
    "view-pending": Kind(503, "Committed, view pending", "The read model has not reached the position of `after` yet."),
}
ERRORS_MAX = 20  # fields named in one answer


class Problem(Exception):
    """An answer that is not what was asked for. `errors`: what is wrong where, as `{"pointer": "#/amount", "detail": …}`."""

    def __init__(
        self, kind: str, detail: str, *, errors: Sequence[Mapping[str, str]] = (), headers: Iterable[Header] = ()
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.errors, self.headers = kind, detail, list(errors), list(headers)
        self.status = KINDS[kind].status

    def body(self, correlation: str) -> bytes:
        """The JSON document."""
        document: dict[str, Any] = {
            "type": f"urn:titan:problem:{self.kind}",
            "title": KINDS[self.kind].title,
            "status": self.status,
            "detail": self.detail,
            "correlation": correlation,
        }
        if self.errors:
            document["errors"] = self.errors
        return orjson.dumps(document)


def retry_after(seconds: int) -> list[Header]:
    return [(b"retry-after", b"%d" % max(1, seconds))]


def unauthenticated(detail: str, *, tried: bool) -> Problem:
    """401 with the challenge of RFC 6750; `tried`: there was a token and it is not good."""
    challenge = b'Bearer realm="titan", error="invalid_token"' if tried else b'Bearer realm="titan"'
    return Problem("unauthenticated", detail, headers=[(b"www-authenticate", challenge)])


AWAY = (
    psycopg.OperationalError,
    PoolTimeout,
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    ClickHouseError,
    ConnectionError,
)
CLICKHOUSE_UNREADY = {60, 81}  # UNKNOWN_TABLE, UNKNOWN_DATABASE
CLICKHOUSE_BUSY = {159, 202, 241}  # TIMEOUT_EXCEEDED, TOO_MANY_SIMULTANEOUS_QUERIES, MEMORY_LIMIT_EXCEEDED
STATUS_KINDS = {400: "malformed", 401: "unauthenticated", 403: "forbidden", 404: "not-found", 405: "method"}


def problem_of(error: BaseException, *, if_match: bool = False) -> Problem:
    """The answer to an exception. `if_match`: the caller named a version. What nobody foresaw is logged and a 500."""
    match error:
        case Problem():
            return error
        case Refused():
            return Problem("refused", str(error))
        case NotFound():
            return Problem("not-found", str(error))
        case Conflict():
            return Problem("stale" if if_match else "conflict", str(error))
        case Reused():
            return Problem("reused", str(error))
        case Invalid():
            return Problem("invalid", str(error))
        case Unavailable():
            return Problem("unavailable", str(error), headers=retry_after(1))
        case RequestValidationError():
            return invalid(cast("Sequence[dict[str, Any]]", error.errors()))
        case HTTPException():
            kind = STATUS_KINDS.get(error.status_code, "internal" if error.status_code >= 500 else "malformed")
            headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
            return Problem(kind, str(error.detail), headers=headers)
        case TimeoutError():
            return Problem(
                "unavailable",
                "this took too long, and whether it was done is unknown: repeat it with the same Idempotency-Key",
                headers=retry_after(1),
            )
        case psycopg.errors.UndefinedTable() | psycopg.errors.UndefinedColumn():
            log.error("a table is missing or old: %s", str(error).strip())
            return Problem("unavailable", "the database is not set up for this version yet", headers=retry_after(5))
        case ClickHouseRefuses() if error.code in CLICKHOUSE_UNREADY:
            log.error("a table is missing: %s", error)
            return Problem("unavailable", "ClickHouse is not set up for this version yet", headers=retry_after(5))
        case ClickHouseRefuses() if error.code in CLICKHOUSE_BUSY:
            log.warning("ClickHouse has too much to do: %s", error)
            return Problem("unavailable", "ClickHouse has too much to do", headers=retry_after(5))
        case psycopg.DataError():
            log.exception("the database refuses a value that the schema lets through", exc_info=error)
            return Problem("invalid", "a value cannot be stored")
    if isinstance(error, AWAY):
        log.warning("a store does not answer: %s: %s", type(error).__name__, str(error).strip())
        return Problem("unavailable", "a store does not answer", headers=retry_after(1))
    log.error("unforeseen", exc_info=error)
    return Problem("internal", "this is a bug of ours; its log line has the correlation of this answer")


def invalid(found: Sequence[Mapping[str, Any]]) -> Problem:
    """422 from Pydantic's errors: a JSON pointer for the body (RFC 6901 as a URI fragment), a name for a parameter."""
    errors = []
    for one in found[:ERRORS_MAX]:
        where, *path = one["loc"]
        text = str(one["msg"])
        if where == "body":
            pointer = "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')[:100]}" for step in path)
            errors.append({"pointer": f"#{pointer}", "detail": text})
        else:
            errors.append({"parameter": ".".join(map(str, path)), "in": str(where), "detail": text})
    first = errors[0]
    name = first.get("parameter") or first["pointer"]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return Problem("invalid", f"{name}: {first['detail']}{more}", errors=errors)
