"""The page on which somebody signs in for a client, and says yes or no. It needs nothing from elsewhere, and keeps no cookie."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import urlsplit

from starlette.responses import HTMLResponse

STYLE = """
:root { color-scheme: light dark } body { font: 16px/1.5 system-ui, sans-serif; margin: 10vh auto; max-width: 24rem; padding: 1rem }
label { display: block; margin: .8rem 0 } input { box-sizing: border-box; font: inherit; padding: .4rem; width: 100% }
button { font: inherit; margin-right: .5rem; padding: .4rem 1rem } [role=alert] { color: #cf222e; font-weight: 600 } li { font-family: monospace }
"""


def page(
    client: str, scope: str, redirect_uri: str, carried: Sequence[tuple[str, str]], wrong: str = "", status: int = 200
) -> HTMLResponse:
    """Who asks for what, and the fields to sign in with. `carried` comes back with them; `wrong`: what was wrong last time."""
    hidden = "".join(f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">' for name, value in carried)
    scopes = "".join(f"<li>{escape(one)}</li>" for one in scope.split())
    alert = f'<p role="alert">{escape(wrong)}</p>' if wrong else ""
    body = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Sign in</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<h1>Sign in</h1><p><strong>{escape(client)}</strong> asks to act for you:</p><ul>{scopes}</ul>{alert}
<form method="post" action="/oauth/authorize">{hidden}
<label>E-mail address <input name="email" type="email" autocomplete="username" autofocus></label>
<label>Password <input name="password" type="password" autocomplete="current-password"></label>
<label>Code, if you have a second factor <input name="code" inputmode="numeric" autocomplete="one-time-code"></label>
<button name="answer" value="yes">Allow</button><button name="answer" value="no" formnovalidate>Refuse</button></form></html>"""
    target = urlsplit(redirect_uri)
    headers = {
        "cache-control": "no-store",
        "content-security-policy": f"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none';"
        f" form-action 'self' {target.scheme}://{target.netloc}",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
    return HTMLResponse(body, status, headers)
