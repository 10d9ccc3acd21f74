"""Routes: FastAPI's declarations, run on a shorter path.

FastAPI reads a route's signature and writes its OpenAPI; the request itself is solved here, because the general solver
takes several times as long as the command that it wraps: right to call, then parameters, then body, then the function.
A route with dependencies that are no `Piece` is solved by FastAPI itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from fastapi import params
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import Response

from aggregates.kernel import KernelError
from api.kernel.auth import Bearer
from api.kernel.call import Call
from api.kernel.commands import Receipt, stored_before
from api.kernel.piece import Piece
from api.kernel.problems import Problem

Taken = Bearer | Piece[Any]


class Route(APIRoute):
    """A route of a service."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **given: Any) -> None:
        super().__init__(path, endpoint, **given)
        if not inspect.iscoroutinefunction(endpoint):
            raise TypeError(f"{endpoint.__qualname__} must be async: a thread costs more than most requests")
        wanted = self.dependant
        self.pieces: list[tuple[str | None, Taken]] = [
            (one.name, one.call) for one in wanted.dependencies if isinstance(one.call, Bearer | Piece)
        ]
        self.pieces.sort(key=lambda one: not isinstance(one[1], Bearer))  # who calls is settled first
        self.vouches = any(piece.vouches for _, piece in self.pieces if isinstance(piece, Piece))
        body = wanted.body_params
        self.short = (
            len(self.pieces) == len(wanted.dependencies)
            and not self._embed_body_fields
            and len(body) <= 1
            and not any(isinstance(one.field_info, params.Form) for one in body)
            and wanted.response_param_name is None
            and wanted.background_tasks_param_name is None
            and not (self.is_sse_stream or self.is_json_stream)
        )
        self.path_fields = [(one.name, one.alias, one) for one in wanted.path_params]
        self.unasked = _when_nothing_is_said(wanted.query_params, QueryParams())
        self.unsaid = _when_nothing_is_said(wanted.header_params, Headers())
        self.headers = {one.alias.lower().replace("_", "-").encode() for one in wanted.header_params}
        self.returns = self.response_model if isinstance(self.response_model, type) else None

    def has(self, kind: type[Taken]) -> Taken | None:
        """The piece of that kind in the signature, if there is one."""
        return next((piece for _, piece in self.pieces if isinstance(piece, kind)), None)

    async def run(self, call: Call) -> tuple[int, bytes] | Response:
        """Answer a request: status and JSON body, or a response that the function made. Raises problems."""
        wanted = self.dependant
        values: dict[str, Any] = {}
        for name, piece in self.pieces:
            if isinstance(piece, Bearer):
                values[cast(str, name)] = piece.take(call)
        errors: list[Any] = []
        found = call.scope["path_params"]
        for name, alias, field in self.path_fields:
            values[name], wrong = field.validate(found[alias], loc=("path", alias))
            errors += wrong
        if self.unasked is not None and not call.scope["query_string"]:
            values.update(self.unasked)
        elif wanted.query_params:
            query, wrong = request_params_to_args(wanted.query_params, QueryParams(call.scope["query_string"]))
            values.update(query)
            errors += wrong
        if self.unsaid is not None and not any(name in self.headers for name, _ in call.scope["headers"]):
            values.update(self.unsaid)
        elif wanted.header_params:
            headers, wrong = request_params_to_args(wanted.header_params, Headers(scope=call.scope))
            values.update(headers)
            errors += wrong
        if wanted.body_params:
            body = wanted.body_params[0]
            values[body.name], wrong = body.validate(await call.json(), loc=("body",))
            errors += wrong
        if errors:
            raise RequestValidationError(errors)
        for name, piece in self.pieces:
            if not isinstance(piece, Bearer):
                values[cast(str, name)] = piece.take(call)
        if wanted.request_param_name:
            values[wanted.request_param_name] = Request(call.scope, call.receive)
        try:
            result = await self.endpoint(**values)
        except (KernelError, Problem):
            # What a route looks at before its command may be changed by that very command: a resend is answered all the same.
            result = await stored_before(call, self.endpoint.__module__.removeprefix("api.").partition(".")[0])
            if result is None:
                raise
        if type(result) is Receipt:
            return self.status_code or 200, result.json()
        if isinstance(result, Response):
            return result
        return self.status_code or 200, self._written(result)

    def _written(self, result: Any) -> bytes:
        field = self.response_field
        if field is None:
            return b""
        if type(result) is not self.returns:
            result, wrong = field.validate(result, loc=("response",))
            if wrong:
                raise TypeError(f"{self.endpoint.__qualname__} answers with something else than it declares: {wrong}")
        return field.serialize_json(result)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own way, for routes that are not `short`: the body is still read by our rules."""
        solve = super().get_route_handler()

        async def handler(request: Request) -> Response:
            call: Call = request.scope["titan"]
            for _, piece in self.pieces:
                if isinstance(piece, Bearer):
                    piece.take(call)
            if self.body_field is not None and not isinstance(self.body_field.field_info, params.Form):
                request._json = await call.json()
                request._body = call.canonical or b"null"
            return await solve(request)

        return handler


def _when_nothing_is_said(fields: Sequence[Any], nothing: QueryParams | Headers) -> dict[str, Any] | None:
    """What parameters are when a request has none of them, if that is always the same; None when one is required."""
    values, wrong = request_params_to_args(fields, nothing)
    same = all(value is None or isinstance(value, str | int | float) for value in values.values())
    return values if same and not wrong else None
