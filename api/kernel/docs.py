"""/docs: the OpenAPI document as one page that needs nothing from elsewhere, each route with a curl line that works."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse

from api.kernel.route import Route

Schema = dict[str, Any]

router = APIRouter(route_class=Route)

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1.5rem; }
h1 { margin-bottom: 0 } h2 { margin: 2rem 0 .5rem; text-transform: capitalize }
nav a { margin-right: .8rem } details { border: 1px solid var(--line); border-radius: 6px; margin: .35rem 0 }
summary { cursor: pointer; padding: .4rem .7rem } details > div { border-top: 1px solid var(--line); padding: .3rem .9rem .8rem }
.method { display: inline-block; font-weight: 700; width: 4.5rem } .GET { color: #1a7f37 } .POST { color: #0969da }
.PUT { color: #9a6700 } .DELETE { color: #cf222e } .what { float: right; opacity: .75 }
code, pre { font: 13px/1.45 ui-monospace, monospace } pre { background: var(--soft); border-radius: 6px; overflow-x: auto; padding: .6rem }
table { border-collapse: collapse; width: 100% } td { border-top: 1px solid var(--line); padding: .25rem .6rem .25rem 0; vertical-align: top }
"""


@router.get("/docs", summary="The documentation", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    page = "".join(_page(request.app.openapi(), str(request.base_url).rstrip("/")))
    return HTMLResponse(page, headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"})


@router.get("/", summary="The documentation", include_in_schema=False)
async def root() -> RedirectResponse:
    return RedirectResponse("/docs")


def _page(document: Schema, url: str) -> Iterator[str]:
    by_tag: dict[str, list[tuple[str, str, Schema]]] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            by_tag.setdefault((operation.get("tags") or ["other"])[0], []).append((method.upper(), path, operation))
    info = document["info"]
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style><h1>{escape(info["title"])}</h1>'
    yield f"<p>{escape(info['description'])}</p><nav>"
    yield "".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in by_tag)
    yield '<a href="/openapi.json">openapi.json</a></nav>'
    for tag, operations in by_tag.items():
        yield f'<h2 id="{escape(tag)}">{escape(tag)}</h2>'
        for method, path, operation in operations:
            yield f'<details><summary><span class="method {method}">{method}</span><code>{escape(path)}</code>'
            yield f'<span class="what">{escape(operation.get("summary", ""))}</span></summary><div>'
            yield from _operation(document, url, method, path, operation)
            yield "</div></details>"
    yield "</html>"


def _operation(document: Schema, url: str, method: str, path: str, operation: Schema) -> Iterator[str]:
    if about := operation.get("description"):
        yield f"<p>{escape(about)}</p>"
    yield f"<pre>{escape(_curl(url, method, path, operation))}</pre>"
    if parameters := operation.get("parameters"):
        rows = "".join(
            f"<tr><td><code>{escape(one['name'])}</code><td>{one['in']}<td>{escape(_about(one))}" for one in parameters
        )
        yield f"<table>{rows}</table>"
    yield "<table>"
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            answer = document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        yield f"<tr><td>{status}<td>{escape(answer.get('description', ''))}"
        for content in answer.get("content", {}).values() if status.startswith("2") else ():
            if "example" in content:
                yield f"<pre>{escape(json.dumps(content['example'], indent=2, ensure_ascii=False))}</pre>"
    yield "</table>"


def _about(parameter: Schema) -> str:
    about = parameter.get("description") or parameter.get("schema", {}).get("description") or ""
    return about + ("" if parameter.get("required") else " (optional)")


def _curl(url: str, method: str, path: str, operation: Schema) -> str:
    for one in operation.get("parameters", ()):
        if one["in"] == "path":
            path = path.replace(f"{{{one['name']}}}", str(one.get("example", one["name"])))
    words = ["curl"] + (["-X", method] if method not in ("GET", "POST") else [])
    lines = [" ".join([*words, shlex.quote(url + path)])]
    if operation.get("security"):
        lines.append('-H "Authorization: Bearer $(titan token --role admin)"')
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        body = json.dumps(content.get("example"), ensure_ascii=False)
        lines += [f"-H 'Content-Type: {kind}'", f"-d {shlex.quote(body)}"]
    if method == "POST" and "requestBody" not in operation:
        lines[0] = lines[0].replace("curl", "curl -X POST", 1)
    return " \\\n  ".join(lines)
