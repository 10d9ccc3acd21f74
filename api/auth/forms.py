"""Requests of pages and of OAuth: forms instead of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends

from api.kernel import Problem
from api.kernel.call import Call
from api.kernel.piece import Piece

FIELDS_MAX = 40
FORM = b"application/x-www-form-urlencoded"


class SentForm:
    """`await form()`: the fields in their order. Raises 415, 413, 408, or 422 for too many, or what is no text."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def __call__(self) -> list[tuple[str, str]]:
        if (self._call.content_type or b"").partition(b";")[0].strip().lower() != FORM:
            raise Problem("media-type", f"the body is a form: Content-Type: {FORM.decode()}")
        return fields(await self._call.body())

    def basic(self) -> dict[str, str]:
        """The header with which a client says who it is, if there is one."""
        given = (self._call.authorization or b"").decode("latin-1")
        return {"Authorization": given} if given.lower().startswith("basic ") else {}


class FormPiece(Piece[SentForm]):
    """Gives a route the form that it was sent."""

    def take(self, call: Call) -> SentForm:
        return SentForm(call)


Form = Annotated[SentForm, Depends(FormPiece())]


def fields(text: bytes) -> list[tuple[str, str]]:
    """Names and values of a form. Raises the 422 problem."""
    try:
        found = parse_qsl(text.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError as error:
        raise Problem("invalid", f"not a form: {error}") from error
    if any("\0" in name + value for name, value in found):
        raise Problem("invalid", "a text has no NUL character")
    return found


def form_of(required: Sequence[str], **properties: str) -> dict[str, Any]:
    """The OpenAPI of a form: its fields with an example each."""
    schema = {
        "type": "object",
        "required": list(required),
        "properties": {name: {"type": "string", "examples": [example]} for name, example in properties.items()},
    }
    return {"requestBody": {"required": True, "content": {FORM.decode(): {"schema": schema}}}}
