"""Mails: text to one address, by SMTP or, without a server, into files that can be read here.

A mail's reference is its Message-ID and its file's name: sent again, after a crash that left its outcome unknown, it is the same
mail, which mail programs show once.
"""

from __future__ import annotations

import asyncio
import os
import smtplib
import ssl
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit
from uuid import UUID

from infra.settings import Settings

SMTP_S_MAX = 20.0
UNBROKEN = default.clone(max_line_length=500)  # a link stays one line, also for who reads the source


class Unsent(Exception):
    """The server did not take the mail, or whether it did is unknown."""


class Rejected(Unsent):
    """The server will never take this mail: there is no such mailbox."""


class Sender(Protocol):
    """Sends mails. Raises `Unsent`, or `Rejected`. `forget`: delete what is kept here of one."""

    async def send(self, message: EmailMessage) -> None: ...

    async def forget(self, reference: UUID) -> None: ...


def message(of: Settings, reference: UUID, to: str, subject: str, text: str) -> EmailMessage:
    """A mail in plain text. Machines made it, so nobody's machine answers it (RFC 3834)."""
    made = EmailMessage(UNBROKEN)
    made["From"], made["To"], made["Subject"] = of.mail_from, to, subject
    made["Message-ID"] = f"<{reference}@{urlsplit(of.issuer).hostname}>"
    made["Auto-Submitted"] = "auto-generated"
    made.set_content(text)
    return made


def sender(of: Settings) -> Sender:
    """The one of the settings, which have looked at its URL."""
    return Server(of.mail) if of.mail else Folder(of.data / "mail")


class Folder:
    """Mails as files, one each, for whoever develops or tries something."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def send(self, message: EmailMessage) -> None:
        try:
            await asyncio.to_thread(self._write, message)
        except OSError as error:
            raise Unsent(str(error)) from error

    async def forget(self, reference: UUID) -> None:
        await asyncio.to_thread((self._folder / f"{reference}.eml").unlink, missing_ok=True)

    def _write(self, message: EmailMessage) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._folder / f"{message['Message-ID'].strip('<>').partition('@')[0]}.eml"
        new = file.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(message.as_bytes())
        new.replace(file)


class Server:
    """A mail server. `smtps` speaks TLS from the start; `smtp` changes to it when the server offers it."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    async def send(self, message: EmailMessage) -> None:
        try:
            await asyncio.to_thread(self._deliver, message)
        except smtplib.SMTPRecipientsRefused as error:
            [(code, words)] = error.recipients.values()
            kind = Rejected if code >= 500 else Unsent
            raise kind(f"{code} {words.decode(errors='replace')}") from error
        except (smtplib.SMTPException, OSError) as error:
            raise Unsent(f"{type(error).__name__}: {error}") from error

    async def forget(self, reference: UUID) -> None:
        """What was sent is in others' hands."""

    def _deliver(self, message: EmailMessage) -> None:
        host, tls = self._url.hostname or "", ssl.create_default_context()
        made: smtplib.SMTP
        if self._url.scheme == "smtps":
            made = smtplib.SMTP_SSL(host, self._url.port or 465, timeout=SMTP_S_MAX, context=tls)
        else:
            made = smtplib.SMTP(host, self._url.port or 25, timeout=SMTP_S_MAX)
        with made as server:
            server.ehlo()
            if self._url.scheme == "smtp" and server.has_extn("starttls"):
                server.starttls(context=tls)
                server.ehlo()
            if self._url.username:
                server.login(unquote(self._url.username), unquote(self._url.password or ""))
            server.send_message(message)
