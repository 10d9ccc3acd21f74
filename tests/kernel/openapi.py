"""Holds HTTP against an OpenAPI document, 3.0 or 3.1, to the letter: what the document doesn't name is wrong, on either side.

Of what vendors document so, that is paths, parameters, headers, bodies as JSON or as a form with `a[b][0]=c`, and answers by status.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import jsonschema_rs

Document = dict[str, Any]

FORM, JSON = "application/x-www-form-urlencoded", "application/json"
SAID = {  # of JSON Schema; the rest of a document is words for people
    "$ref", "type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "oneOf", "allOf",
    "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "pattern",
}  # fmt: skip
WRONGS_MAX = 5  # of one document are told


class Api:
    """Some operations of a document: method and path as the document has it. `base` is the path before the document's own.

    What they take and answer is compiled at once, so that no request waits for it; of the rest of the document nothing stays.
    """

    def __init__(self, document: Document, operations: Iterable[tuple[str, str]], base: str = "") -> None:
        self.base = base
        schemas = document["components"]["schemas"]
        exact = {name: _exact(one) for name, one in schemas.items()}
        self._registry = jsonschema_rs.Registry([("urn:api", {"components": {"schemas": exact}})])
        self._validators: dict[str, jsonschema_rs.Validator] = {}
        self._components = {kind: of for kind, of in document["components"].items() if kind != "schemas"}
        # Those with the fewest parameters first, since `/a/search` is not `/a/{id}`.
        self._operations = [
            (method, path, _expression(base + path), document["paths"][path][method.lower()])
            for method, path in sorted(operations, key=lambda one: one[1].count("{"))
        ]
        for method, path, _, operation in self._operations:
            asked = base + re.sub("[{}]", "", path)
            self.wrong_request(method, asked, "", {"content-type": FORM}, b"")
            for status in operation["responses"]:
                self.wrong_answer(
                    method, asked, int(status) if status.isdigit() else 500, {"content-type": JSON}, b"{}"
                )

    def wrong_request(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> str:
        """What is wrong with it, empty when nothing is. `headers` by their names in lower case."""
        found = self._operation(method, path)
        if found is None:
            return f"there is no {method} {path}, or it is not among the operations that are held"
        template, operation, in_path = found
        parameters = [self._resolved(one) for one in operation.get("parameters", ())]
        asked = {one: value for one, value in headers.items() if one in _names(parameters, "header")}
        wrongs = [
            *self._wrong_parameters(parameters, "path", in_path),
            *self._wrong_parameters(parameters, "query", nested(query)),
            *self._wrong_parameters(parameters, "header", asked),
        ]
        if body or method not in ("GET", "DELETE"):
            wrongs += self._wrong_body(f"{method} {template}", operation.get("requestBody", {}), headers, body)
        return "; ".join(wrongs[:WRONGS_MAX])

    def wrong_answer(self, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> str:
        found = self._operation(method, path)
        if found is None:
            return ""  # nothing is said of what isn't there
        template, operation, _ = found
        answers = operation["responses"]
        if str(status) not in answers and "default" not in answers:
            return f"{method} {template} never answers {status}"
        answer = self._resolved(answers.get(str(status)) or answers["default"])
        return "; ".join(self._wrong_body(f"{method} {template} {status}", answer, headers, body)[:WRONGS_MAX])

    def wrong(self, schema: str | Document, value: object) -> str:
        """What is wrong with a value of this schema, or of the document's of that name."""
        wanted = {"$ref": f"#/components/schemas/{schema}"} if isinstance(schema, str) else schema
        return "; ".join(self._wrongs(wanted, value)[:WRONGS_MAX])

    def schema_of(self, method: str, path: str) -> Document:
        """The schema of a request's body."""
        found = self._operation(method, path)
        assert found is not None, f"there is no {method} {path}"
        [content] = found[1]["requestBody"]["content"].values()
        schema: Document = content["schema"]
        return schema

    def _operation(self, method: str, path: str) -> tuple[str, Document, dict[str, str]] | None:
        for of, template, expression, operation in self._operations:
            if of == method and (found := expression.fullmatch(path)):
                return template, operation, found.groupdict()
        return None

    def _resolved(self, one: Document) -> Document:
        """Of components that are no schemas: those are the validators' matter."""
        while "$ref" in one:
            _, _, kind, name = one["$ref"].split("/")
            one = self._components[kind][name]
        return one

    def _wrong_parameters(self, parameters: list[Document], where: str, given: Document) -> list[str]:
        mine = [one for one in parameters if one["in"] == where]
        properties = {_name(one): one["schema"] for one in mine}
        required = [_name(one) for one in mine if one.get("required")]
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return self._wrongs(schema, self._typed(schema, given), f"{where} ")

    def _wrong_body(self, what: str, wanted: Document, headers: Mapping[str, str], body: bytes) -> list[str]:
        content = wanted.get("content", {})
        kind = headers.get("content-type", "").partition(";")[0]
        if kind not in content:
            return (
                []
                if not (body or content)
                else [f"{what} is of {' or '.join(content) or 'no type'}, not of {kind or 'none'}"]
            )
        schema = content[kind]["schema"]
        if kind == FORM:
            return self._wrongs(schema, self._typed(schema, nested(body.decode())))
        try:
            return self._wrongs(schema, json.loads(body))
        except ValueError:
            return [f"{what} is no JSON"]

    def _wrongs(self, schema: Document, value: object, where: str = "") -> list[str]:
        key = json.dumps(schema)
        if key not in self._validators:
            self._validators[key] = jsonschema_rs.Draft202012Validator(_exact(schema), registry=self._registry)
        return [where + one for one in _told(self._validators[key].iter_errors(value))]

    def _typed(self, schema: Document, value: Any) -> Any:
        """What a form or a query says, where everything is text, as the types that it can be read as."""
        for one in schema.get("anyOf", ()):
            read = self._typed(one, value)
            if not self._wrongs(one, read):
                return read
        match schema.get("type"), value:
            case (("integer" | "number"), str()) if re.fullmatch(r"-?[0-9]+", value):
                return int(value)
            case "boolean", "true" | "false":
                return value == "true"
            case "array", list():
                return [self._typed(schema["items"], one) for one in value]
            case "object", dict():
                others = schema.get("additionalProperties")
                others = others if isinstance(others, dict) else {}
                inner = schema.get("properties", {})
                return {name: self._typed(inner.get(name, others), one) for name, one in value.items()}
        return value


def _expression(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path)))


def nested(form: str) -> Document:
    """`a[b][0]=c` as it is meant: `{"a": {"b": ["c"]}}`."""
    root: Document = {}
    for name, value in parse_qsl(form, keep_blank_values=True):
        *path, last = re.findall(r"[^\[\]]+", name)
        inner = root
        for step in path:
            inner = inner.setdefault(step, {})
        inner[last] = value
    return {name: _lists(value) for name, value in root.items()}


def _lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if all(name.isdigit() for name in value):
        return [_lists(value[name]) for name in sorted(value, key=int)]
    return {name: _lists(one) for name, one in value.items()}


def _names(parameters: list[Document], where: str) -> set[str]:
    return {_name(one) for one in parameters if one["in"] == where}


def _name(parameter: Document) -> str:
    name: str = parameter["name"]
    return name.lower() if parameter["in"] == "header" else name


def _exact(schema: Any) -> Any:
    """The schema in JSON Schema's words, closed: an object has the properties that are named and no others."""
    if not isinstance(schema, dict):
        return [_exact(one) for one in schema] if isinstance(schema, list) else schema
    if "$ref" in schema:
        return {"$ref": "urn:api" + schema["$ref"]}
    exact: Document = {
        word: _exact(of) for word, of in schema.items() if word in SAID - {"properties", "enum", "required"}
    }
    exact |= {word: schema[word] for word in ("enum", "required") if word in schema}
    if "properties" in schema:
        exact["properties"] = {name: _exact(one) for name, one in schema["properties"].items()}
    if schema.get("properties"):
        exact.setdefault("additionalProperties", False)
    return {"anyOf": [exact, {"type": "null"}]} if schema.get("nullable") else exact


def _told(errors: Iterable[jsonschema_rs.ValidationError]) -> list[str]:
    """In words. Of the many forms that a value could have, what keeps it from the one that it is nearest to: of its type, and by least."""
    kinds, told = jsonschema_rs.ValidationErrorKind, []
    for error in errors:
        if isinstance(error.kind, kinds.AnyOf | kinds.OneOfNotValid):
            here = error.instance_path
            forms = [
                (any(isinstance(one.kind, kinds.Type) and one.instance_path == here for one in form), _told(form))
                for form in error.kind.context
            ]
            told += min((one for one in forms if one[1]), key=lambda one: (one[0], len(one[1])))[1]
        else:
            told.append(f"{'.'.join(map(str, error.instance_path)) or 'it'}: {error.message[:200]}")
    return told
