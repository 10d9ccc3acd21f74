"""Pages for people: to sign in for a client, and to answer a mail. They need nothing from elsewhere, and keep no cookie."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Literal
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
    scopes = "".join(f"<li>{escape(one)}</li>" for one in scope.split())
    target = urlsplit(redirect_uri)
    return _page(
        "Sign in",
        f"""<p><strong>{escape(client)}</strong> asks to act for you:</p><ul>{scopes}</ul>{_alert(wrong)}
<form method="post" action="/oauth/authorize">{_hidden(carried)}
<label>E-mail address <input name="email" type="email" autocomplete="username" autofocus></label>
<label>Password <input name="password" type="password" autocomplete="current-password"></label>
<label>Code, if you have a second factor <input name="code" inputmode="numeric" autocomplete="one-time-code"></label>
<button name="answer" value="yes">Allow</button><button name="answer" value="no" formnovalidate>Refuse</button></form>""",
        status,
        f"'self' {target.scheme}://{target.netloc}",
    )


def answer_page(purpose: Literal["verify", "reset"], token: str, wrong: str = "", status: int = 200) -> HTMLResponse:
    """The password that was chosen, or a new one, in answer to a mail."""
    title, ask, fill = {
        "verify": ("Your account", "The password that you have chosen", "current-password"),
        "reset": ("A new password", "The new password", "new-password"),
    }[purpose]
    return _page(
        title,
        f"""{_alert(wrong)}<form method="post" action="/auth/mail/{purpose}">{_hidden([("token", token)])}
<label>{ask} <input name="password" type="password" autocomplete="{fill}" autofocus></label><button>Go on</button></form>""",
        status,
    )


def done_page(title: str, text: str) -> HTMLResponse:
    """Nothing more to do here."""
    return _page(title, f"<p>{escape(text)}</p>")


def _page(title: str, body: str, status: int = 200, form_action: str = "'self'") -> HTMLResponse:
    html = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style><h1>{title}</h1>{body}</html>"""
    headers = {
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none';"
        f" form-action {form_action}",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
    return HTMLResponse(html, status, headers)


def _hidden(carried: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">' for name, value in carried)


def _alert(wrong: str) -> str:
    return f'<p role="alert">{escape(wrong)}</p>' if wrong else ""
