"""OpenAPI: what FastAPI reads from the signatures, plus what the kernel adds to each route: its problems, headers, examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.kernel.auth import Bearer
from api.kernel.call import ENTITY_TAG, IDEMPOTENCY_KEY
from api.kernel.commands import CommandsPiece
from api.kernel.edge import LIMITLESS
from api.kernel.problems import KINDS, MEDIA_TYPE
from api.kernel.route import Route

Schema = dict[str, Any]

ABOUT = {
    401: "Unauthenticated", 403: "Forbidden", 404: "NotFound", 408: "SlowRequest", 409: "Conflict", 412: "Stale",
    413: "TooLarge", 415: "MediaType", 422: "Invalid", 429: "TooMany", 503: "Unavailable",
}  # fmt: skip
PROBLEM: Schema = {
    "title": "Problem",
    "description": "RFC 9457. `type` is `urn:titan:problem:` and a word; `correlation` finds the request in the logs.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "correlation"],
    "properties": {
        "type": {"type": "string", "enum": [f"urn:titan:problem:{kind}" for kind in KINDS]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "correlation": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "pointer": {
                        "type": "string",
                        "description": "Where in the body: a JSON pointer as a URI fragment.",
                    },
                    "parameter": {"type": "string"},
                    "in": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}
HEADERS: dict[str, Schema] = {
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"schema": {"type": "string"}},
    "Correlation-Id": {"description": "Finds this request in logs and events.", "schema": {"type": "string"}},
    "ETag": {"description": "The version, for If-Match.", "schema": {"type": "string", "pattern": '^"[0-9]+"$'}},
    "Location": {"description": "What was made.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "This is the answer of an earlier request.",
        "schema": {"type": "string", "enum": ["true"]},
    },
}
ON_PROBLEM = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}
CORRELATION = "0af7651916cd43dd8448eb211c80319c"
KEY_PARAMETER: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and request again is answered with the first answer; committed with the events.",
    "schema": {"type": "string", "pattern": IDEMPOTENCY_KEY},
}
MATCH_PARAMETER: Schema = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "Only if it is still at this version (the ETag of a read or of a command).",
    "schema": {"type": "string", "pattern": ENTITY_TAG},
    "example": '"3"',
}
FORMATS = {"uuid": "0191d1f0-9d3b-7c3e-8f00-5c2a7d1f4b6a", "date-time": "2026-11-01T00:00:00Z", "date": "2026-11-01"}
DEPTH_MAX = 12


def statuses(route: Route) -> set[int]:
    """The problems that a route of ours can answer with."""
    wanted = route.dependant
    found: set[int] = set()
    if route.path not in LIMITLESS:
        found |= {429, 503}
    elif "host" in {one.name for one in wanted.dependencies}:
        found.add(503)
    if route.has(Bearer):
        found |= {401, 403}
    if wanted.path_params:
        found |= {404, 422}
    if any(one.query_params or one.header_params for one in (wanted, *wanted.dependencies)):
        found.add(422)
    if "after" in {one.name for one in wanted.query_params}:
        found.add(404)  # no such position
    if wanted.body_params:
        found |= {408, 413, 415, 422}
    if route.has(CommandsPiece):
        found |= {409, 422}
        if "{id}" in route.path:
            found.add(412)
    return found


def document(app: FastAPI, routes: list[Any]) -> Schema:
    """The OpenAPI document of an app: FastAPI's, completed."""
    made = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if "Problem" in schemas:
        raise TypeError("a model of a service is named Problem, as the errors of all are")
    _close(schemas)
    schemas["Problem"] = PROBLEM
    components["headers"] = HEADERS
    ours = {
        (route.path, method): route for route in routes if isinstance(route, Route) for method in route.methods or ()
    }
    used: set[int] = set()
    for path, item in made["paths"].items():
        for method, operation in item.items():
            route = ours.get((path, method.upper()))
            used |= _complete(operation, route, schemas)
    components["responses"] = {ABOUT[status]: _problem(status) for status in sorted(used)}
    return made


def _complete(operation: Schema, route: Route | None, schemas: dict[str, Schema]) -> set[int]:
    responses = operation["responses"]
    invalid = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
    wanted = {429, 503} if route is None else statuses(route)
    if invalid.get("$ref", "").endswith("/HTTPValidationError"):
        del responses["422"]
        wanted.add(422)
    for status in (s for s in list(responses) if s.isdigit() and int(s) in ABOUT and "content" not in responses[s]):
        wanted.add(int(status))  # the author says only that it can happen: `responses={404: {}}`
        del responses[status]
    wanted -= {int(status) for status in responses if status.isdigit()}
    for status in sorted(wanted):
        responses[str(status)] = {"$ref": f"#/components/responses/{ABOUT[status]}"}
    for content in (
        c for status, one in responses.items() if status[0] == "2" for c in one.get("content", {}).values()
    ):
        if content.get("schema") and "examples" not in content:
            content.setdefault("example", example(content["schema"], schemas))
    for content in operation.get("requestBody", {}).get("content", {}).values():
        content.setdefault("example", example(content.get("schema", {}), schemas))
    if route is None:
        return wanted
    for status, response in responses.items():
        if not status.startswith("2"):
            continue
        headers = ["Correlation-Id"]
        if route.has(CommandsPiece):
            headers += ["ETag", "Idempotency-Replayed"] + ["Location"] * (status == "201")
        response["headers"] = {
            **{name: {"$ref": f"#/components/headers/{name}"} for name in headers},
            **response.get("headers", {}),
        }
    if bearer := route.has(Bearer):
        needs = {Bearer.scheme_name: [bearer.scope] if isinstance(bearer, Bearer) and bearer.scope else []}
        operation["security"] = [{}, needs] if isinstance(bearer, Bearer) and bearer.optional else [needs]
    if commands := route.has(CommandsPiece):
        parameters = operation.setdefault("parameters", [])
        parameters.append({**KEY_PARAMETER, "required": isinstance(commands, CommandsPiece) and commands.keyed})
        if "{id}" in route.path:
            parameters.append(MATCH_PARAMETER)
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _there(parameter["schema"])
        if (
            parameter["in"] != "header"
            and "example" not in parameter
            and (made := example(parameter["schema"], schemas)) is not None
        ):
            parameter["example"] = made
    return wanted


def _close(node: Any) -> None:
    """A map whose keys have a pattern has no other keys: Pydantic refuses them, and does not write so."""
    if isinstance(node, dict):
        if "patternProperties" in node:
            node.setdefault("additionalProperties", False)
        for one in node.values():
            _close(one)


def _there(schema: Schema) -> Schema:
    """A parameter's schema without null: it is left out, or a text, and "null" is a text like any other."""
    options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(options) != 1:
        return schema
    return {**{word: value for word, value in schema.items() if word != "anyOf"}, **options[0]}


def _problem(status: int) -> Schema:
    kinds = {kind: one for kind, one in KINDS.items() if one.status == status}
    examples = {
        kind: {
            "summary": one.about,
            "value": {
                "type": f"urn:titan:problem:{kind}", "title": one.title, "status": status, "detail": one.about, "correlation": CORRELATION,
            },
        }
        for kind, one in kinds.items()
    }  # fmt: skip
    names = [*ON_PROBLEM.get(status, ()), "Correlation-Id"]
    return {
        "description": " / ".join(one.title for one in kinds.values()),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
    }


def example(schema: Schema, schemas: dict[str, Schema], depth: int = 0) -> Any:
    """A value that the schema describes: its own example where there is one, else the plainest."""
    if depth > DEPTH_MAX:
        return None
    if "$ref" in schema:
        return example(schemas.get(schema["$ref"].rpartition("/")[2], {}), schemas, depth + 1)
    for word in ("example", "const", "default"):
        if schema.get(word) is not None:
            return schema[word]
    if schema.get("examples"):
        return schema["examples"][0]
    if schema.get("enum"):
        return schema["enum"][0]
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return example(schema[word][0], schemas, depth + 1)
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            made = {name: example(one, schemas, depth + 1) for name, one in _shown(schema, properties)}
            if not made and isinstance(extra := schema.get("additionalProperties"), dict):
                made = {"key": example(extra, schemas, depth + 1)} if schema.get("minProperties") else {}
            return made
        case "array":
            return [example(schema.get("items", {}), schemas, depth + 1)]
        case "integer":
            return max(1, schema.get("minimum", 1))
        case "number":
            return max(1.0, schema.get("minimum", 1.0))
        case "boolean":
            return True
        case "string":
            return FORMATS.get(schema.get("format", ""), "text")
    return None


def _shown(schema: Schema, properties: dict[str, Schema]) -> Iterator[tuple[str, Schema]]:
    """Required properties, and optional ones that have an example of their own."""
    for name, one in properties.items():
        if name in schema.get("required", ()) or one.get("examples"):
            yield name, one
