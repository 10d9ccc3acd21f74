"""A person's name, phone number and preferences."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import phonenumbers
from fastapi import Path
from pydantic import BaseModel, Field
from starlette.responses import Response

from aggregates.kernel import Refused
from aggregates.user import PREFERENCES_MAX, User
from api.kernel import Body, Commands, Country, Name, Receipt, Vault, service
from api.kernel.positions import passed
from api.kernel.reads import After, rendered
from api.kernel.stores import Store, TheHost
from api.user.own import Owner, Reader, known
from projections.user import user_preferences, users

PHONE_CHARS_MAX = 30
VALUE_CHARS_MAX = 200

router = service("users", User, users, owner="id", order="-joined_at")


class Naming(Body):
    name: Name


class Phoning(Body):
    phone: Annotated[
        str,
        Field(
            min_length=3,
            max_length=PHONE_CHARS_MAX,
            pattern=r"^[+0-9(][0-9 ()./-]*$",
            description="As people write it; without + it is of the country.",
            examples=["030 901820"],
        ),
    ]
    country: Annotated[Country | None, Field(description="Whose numbers are meant without a +.", examples=["DE"])] = (
        None
    )


class Preferring(Body):
    value: Annotated[str, Field(min_length=1, max_length=VALUE_CHARS_MAX, examples=["metric"])]


class Preferences(BaseModel):
    items: dict[str, str] = Field(examples=[{"units": "metric"}])


Preference = Annotated[str, Path(pattern="^[a-z][a-z0-9_]{0,39}$", examples=["units"])]


@router.post("", status_code=201, summary="Begin a profile of one's own")
async def join(by: Owner, commands: Commands) -> Receipt:
    """Who answers the mail of a registration has one already; this is for who signs in elsewhere. A second one is a 409."""
    return await commands.open_as(by.id, User)


@router.put("/{id}/name", summary="Say one's name")
async def rename(id: UUID, body: Naming, by: Owner, commands: Commands, vault: Vault, store: Store) -> Receipt:
    await known(store, by, id)
    return await commands.tell(id, User.rename, await vault.seal(id, body.name))


@router.put("/{id}/phone", summary="Say one's phone number")
async def give_phone(id: UUID, body: Phoning, by: Owner, commands: Commands, vault: Vault, store: Store) -> Receipt:
    """Kept as E.164, if it is a number that its country has given out or could."""
    await known(store, by, id)
    try:
        number = phonenumbers.parse(body.phone, body.country)
    except phonenumbers.NumberParseException as error:
        raise Refused(f"this is no phone number: {error}") from error
    if not phonenumbers.is_valid_number(number):
        raise Refused("there is no such phone number in its country")
    written = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    country = phonenumbers.region_code_for_number(number)
    country = country if country and len(country) == 2 else "ZZ"  # numbers of no country, as +800
    return await commands.tell(id, User.give_phone, await vault.seal(id, written), country)


@router.delete("/{id}/phone", summary="Take one's phone number back")
async def remove_phone(id: UUID, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(id, User.remove_phone)


@router.get("/{id}/preferences", summary="A person's preferences", response_model=Preferences)
async def preferences(id: UUID, by: Reader, store: Store, host: TheHost, after: After = None) -> Response:
    await known(store, by, id)
    if after:
        await passed(host, user_preferences, after)
    page = await user_preferences.page(host.views, where={"user": id}, limit=PREFERENCES_MAX)
    return await rendered(host, {"items": {row["name"]: row["value"] for row in page.rows}})


@router.put("/{id}/preferences/{name}", summary="Say how one wants something")
async def prefer(
    id: UUID, name: Preference, body: Preferring, by: Owner, commands: Commands, vault: Vault, store: Store
) -> Receipt:
    await known(store, by, id)
    return await commands.tell(id, User.set_preference, name, await vault.seal(id, body.value))


@router.delete("/{id}/preferences/{name}", summary="Not mind any more")
async def unprefer(id: UUID, name: Preference, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(id, User.remove_preference, name)
