"""The read side of Confluent's Schema Registry, answered from the history: kcat, Kafka Connect, Flink, ClickHouse and
confluent-kafka's deserializers decode the topics with this alone. Nothing can be registered here but what is there already.

Paths, bodies, error codes: https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field

from schemas import history
from schemas.compatible import incompatible
from schemas.errors import SchemaError
from schemas.history import Entry
from schemas.tree import Tree, expand, text

LEVEL = "BACKWARD_TRANSITIVE"
MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
BODY_BYTES_MAX = 1_000_000


class RegistryJSON(JSONResponse):
    media_type = MEDIA_TYPE


class Fault(Exception):
    """An error as the registry's clients know it: `code` starts with the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def answer(self) -> RegistryJSON:
        return RegistryJSON({"error_code": self.code, "message": self.message}, int(str(self.code)[:3]))


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except Fault as fault:
                return fault.answer
            except RequestValidationError as error:
                return Fault(422, f"{error.errors()[0]['loc'][-1]}: {error.errors()[0]['msg']}").answer

        return handle


class ErrorMessage(BaseModel):
    error_code: int = Field(examples=[40401])
    message: str = Field(examples=["Subject 'titan.order-titan.order.Placed' not found."])


class Schema(BaseModel):
    schema_: str = Field(alias="schema", description="the Avro schema as a JSON string")
    maxId: int | None = Field(None, description="the highest id there is; with `fetchMaxId` only")


class SubjectVersion(BaseModel):
    subject: str = Field(examples=["titan.order-titan.order.Placed"])
    version: int = Field(examples=[1])


class Version(SubjectVersion):
    id: int = Field(examples=[1])
    schema_: str = Field(alias="schema", description="the Avro schema as a JSON string")


class Registered(BaseModel):
    id: int = Field(examples=[1])


class Level(BaseModel):
    compatibilityLevel: str = Field(examples=[LEVEL])


class Mode(BaseModel):
    mode: str = Field(examples=["READONLY"])


class Compatibility(BaseModel):
    is_compatible: bool
    messages: list[str] | None = Field(None, description="what is not; with `verbose` only")


class Asked(BaseModel):
    """A schema as clients send it."""

    model_config = ConfigDict(populate_by_name=True)
    schema_: str = Field(alias="schema", examples=['{"type":"record","name":"titan.order.Placed","fields":[]}'])
    schemaType: Literal["AVRO"] | None = "AVRO"


router = APIRouter(
    tags=["schema registry"],
    route_class=_Route,
    default_response_class=RegistryJSON,
    responses={422: {"model": ErrorMessage, "description": "A parameter or the body is malformed"}},
)
Subject = Annotated[str, Path(examples=["titan.order-titan.order.Placed"])]
VersionName = Annotated[
    str,
    Path(
        description="a number from 1, or latest",
        examples=["latest"],
        json_schema_extra={"pattern": "^(latest|-1|[1-9][0-9]{0,8})$"},
    ),
]
Id = Annotated[int, Path(examples=[1])]
Flag = Annotated[bool, Query()]
MISSING: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorMessage, "description": "No such subject, version or schema"}
}
READ_ONLY: dict[int | str, dict[str, Any]] = {
    **MISSING,
    400: {"model": ErrorMessage, "description": "The body is not JSON"},
    413: {"model": ErrorMessage, "description": f"The body is larger than {BODY_BYTES_MAX} bytes"},
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {type: {"schema": Asked.model_json_schema()} for type in (MEDIA_TYPE, "application/json")},
    }
}

_read: tuple[tuple[int, int], list[Entry]] | None = None


def _entries() -> list[Entry]:
    """The history, read again when `titan schemas lock` has added to it."""
    global _read
    stat = history.FILE.stat() if history.FILE.exists() else None
    mark = (stat.st_mtime_ns, stat.st_size) if stat else (0, 0)
    if _read is None or _read[0] != mark:
        _read = mark, history.load()
    return _read[1]


def _subject(subject: str) -> list[Entry]:
    if found := [entry for entry in _entries() if entry.subject == subject]:
        return found
    raise Fault(40401, f"Subject '{subject}' not found.")


def _version(subject: str, version: str) -> Entry:
    entries = _subject(subject)
    if version in ("latest", "-1"):
        return entries[-1]
    if not (version.isascii() and version.isdigit() and 0 < int(version[:12]) < 2**31):
        raise Fault(
            42202, f"The specified version '{version}' is not a valid version id. Allowed: 1 to 2^31-1, and latest."
        )
    if int(version) > len(entries):
        raise Fault(40402, f"Version {version} not found.")
    return entries[int(version) - 1]


def _id(id: int) -> Entry:
    entries = _entries()
    if 0 < id <= len(entries):
        return entries[id - 1]
    raise Fault(40403, f"Schema {id} not found")


async def _asked(request: Request) -> Tree:
    """The tree of the schema in the body."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise Fault(413, f"The body is larger than {BODY_BYTES_MAX} bytes.")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Fault(400, "The body is not JSON.") from error
    schema = asked.get("schema") if isinstance(asked, dict) else None
    if not isinstance(schema, str):
        raise Fault(42201, "The body needs 'schema': an Avro schema as a JSON string.")
    if asked.get("schemaType") not in (None, "AVRO") or asked.get("references"):
        raise Fault(42201, "Only Avro schemas without references are here.")
    try:
        return expand(json.loads(schema))
    except (SchemaError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Fault(42201, f"Invalid schema: {error!r}"[:500]) from error


def _same(tree: Tree, entries: list[Entry]) -> Entry | None:
    return next((entry for entry in reversed(entries) if text(entry.tree) == text(tree)), None)


def _described(entry: Entry) -> dict[str, Any]:
    return {"subject": entry.subject, "version": entry.version, "id": entry.id, "schema": entry.text}


@router.get("/subjects", summary="All subjects")
def subjects(subjectPrefix: str = "", deleted: Flag = False) -> list[str]:
    return sorted({entry.subject for entry in _entries() if entry.subject.startswith(subjectPrefix)})


@router.get("/subjects/{subject}/versions", summary="A subject's versions", responses=MISSING)
def versions(subject: Subject) -> list[int]:
    return [entry.version for entry in _subject(subject)]


@router.get("/subjects/{subject}/versions/{version}", summary="One version", response_model=Version, responses=MISSING)
def version(subject: Subject, version: VersionName) -> Any:
    return _described(_version(subject, version))


@router.get("/subjects/{subject}/versions/{version}/schema", summary="One version's schema alone", responses=MISSING)
def version_schema(subject: Subject, version: VersionName) -> Any:
    return RegistryJSON(_version(subject, version).schema)


@router.get(
    "/subjects/{subject}/versions/{version}/referencedby",
    summary="Schemas that refer to it: none does",
    responses=MISSING,
)
def referenced_by(subject: Subject, version: VersionName) -> list[int]:
    _version(subject, version)
    return []


@router.get("/schemas/types", summary="Kinds of schema")
def types() -> list[str]:
    return ["AVRO"]


@router.get("/schemas", summary="All schemas", response_model=list[Version])
def schemas(subjectPrefix: str = "", latestOnly: Flag = False) -> Any:
    entries = [entry for entry in _entries() if entry.subject.startswith(subjectPrefix)]
    latest = {entry.subject: entry.id for entry in entries}
    return [_described(entry) for entry in entries if not latestOnly or latest[entry.subject] == entry.id]


@router.get(
    "/schemas/ids/{id}",
    summary="The schema of an id",
    response_model=Schema,
    response_model_exclude_none=True,
    responses=MISSING,
)
def by_id(id: Id, fetchMaxId: Flag = False) -> Any:
    return {"schema": _id(id).text} | ({"maxId": len(_entries())} if fetchMaxId else {})


@router.get("/schemas/ids/{id}/schema", summary="The schema of an id alone", responses=MISSING)
def schema_by_id(id: Id) -> Any:
    return RegistryJSON(_id(id).schema)


@router.get("/schemas/ids/{id}/subjects", summary="Where an id is used", responses=MISSING)
def subjects_of_id(id: Id) -> list[str]:
    return [_id(id).subject]


@router.get(
    "/schemas/ids/{id}/versions",
    summary="Subject and version of an id",
    response_model=list[SubjectVersion],
    responses=MISSING,
)
def versions_of_id(id: Id) -> Any:
    return [_described(_id(id))]


@router.get("/config", summary="The compatibility that `titan schemas check` keeps", response_model=Level)
def config() -> Any:
    return {"compatibilityLevel": LEVEL}


@router.get("/config/{subject}", summary="A subject's compatibility", response_model=Level, responses=MISSING)
def subject_config(subject: Subject, defaultToGlobal: Flag = False) -> Any:
    if not defaultToGlobal:
        _subject(subject)
    return {"compatibilityLevel": LEVEL}


@router.get("/mode", summary="This registry is read-only", response_model=Mode)
def mode() -> Any:
    return {"mode": "READONLY"}


@router.get("/mode/{subject}", summary="A subject is read-only", response_model=Mode, responses=MISSING)
def subject_mode(subject: Subject, defaultToGlobal: Flag = False) -> Any:
    if not defaultToGlobal:
        _subject(subject)
    return {"mode": "READONLY"}


@router.post(
    "/subjects/{subject}", summary="Look a schema up", response_model=Version, responses=READ_ONLY, openapi_extra=BODY
)
async def look_up(subject: Subject, request: Request) -> Any:
    entries = _subject(subject)
    if entry := _same(await _asked(request), entries):
        return _described(entry)
    raise Fault(40403, "Schema not found")


@router.post(
    "/subjects/{subject}/versions",
    summary="The id of a schema that is there; a new one is refused",
    response_model=Registered,
    responses=READ_ONLY,
    openapi_extra=BODY,
)
async def register(subject: Subject, request: Request) -> Any:
    tree = await _asked(request)
    if entry := _same(tree, [entry for entry in _entries() if entry.subject == subject]):
        return {"id": entry.id}
    raise Fault(42205, f"Subject {subject} is in read-only mode: schemas are added with `titan schemas lock`")


@router.post(
    "/compatibility/subjects/{subject}/versions/{version}",
    summary="Could a schema follow this version?",
    response_model=Compatibility,
    response_model_exclude_none=True,
    responses=READ_ONLY,
    openapi_extra=BODY,
)
async def compatible(subject: Subject, version: VersionName, request: Request, verbose: Flag = False) -> Any:
    return await _compatibility([_version(subject, version)], request, verbose)


@router.post(
    "/compatibility/subjects/{subject}/versions",
    summary="Could a schema follow all versions?",
    response_model=Compatibility,
    response_model_exclude_none=True,
    responses=READ_ONLY,
    openapi_extra=BODY,
)
async def compatible_with_all(subject: Subject, request: Request, verbose: Flag = False) -> Any:
    return await _compatibility(_subject(subject), request, verbose)


async def _compatibility(entries: list[Entry], request: Request, verbose: bool) -> dict[str, Any]:
    tree = await _asked(request)
    if not isinstance(tree, dict) or tree["type"] != "record":
        raise Fault(42201, "Invalid schema: an event's record is expected")
    messages = [message for entry in entries for message in incompatible([entry.tree], [tree])]
    return {"is_compatible": not messages} | ({"messages": messages} if verbose else {})
