"""Product: what a seller offers. A title, and variants that each have a SKU, one value of each option, and prices.

A draft is prepared in any order; publishing puts the variants that have a price on sale; an archived product is over.
A SKU is unique on the platform. One that has been on sale stays taken for ever, since orders name it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit
from uuid import UUID

from aggregates.kernel import Aggregate, Created, Event, Free, Invalid, Money, Take, event, require
from aggregates.kernel.currency import digits
from aggregates.kernel.money import AMOUNT_MAX
from aggregates.kernel.text import line, prose
from aggregates.kernel.text import sku as sku_of

TITLE_CHARS_MAX = 200
DESCRIPTION_CHARS_MAX = 10_000
NAME_CHARS_MAX = 100  # of an attribute, an option, an option's value
VALUE_CHARS_MAX = 1_000  # of an attribute
URL_CHARS_MAX = 2_048
ATTRIBUTES_MAX = 100
OPTIONS_MAX = 5
VALUES_MAX = 100  # of one option
VARIANTS_MAX = 250  # withdrawn ones count: they are remembered
MEDIA_MAX = 50

Kind = Literal["image", "video", "model"]
Status = Literal["draft", "published", "archived"]
Offer = Literal["draft", "listed", "withdrawn"]


@dataclass(frozen=True, slots=True)
class Option:
    """What a buyer chooses, as `size`, and its values in the order of showing."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Medium:
    """A picture, a video or a 3D model. `alt` says in words what it shows, for those who don't see it."""

    kind: Kind
    url: str
    alt: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A variant as it goes on sale."""

    sku: str
    options: dict[str, str]
    prices: tuple[Money, ...]


@dataclass(slots=True)
class Variant:
    """`options` has one value of each option of the product; `offer` is `draft` until it first goes on sale."""

    options: dict[str, str]
    prices: tuple[Money, ...] = ()
    offer: Offer = "draft"


# What can happen. `apply` only records: it never refuses, so old events always load.
class Drafted(Created):
    seller: UUID
    title: str  # may be empty in a draft


class Titled(Event):
    title: str
    skus: tuple[str, ...]  # those that have been on sale: their rows of the catalogue show the title

    def apply(self, product: Product) -> None:
        product.title = self.title


class Described(Event):
    description: str

    def apply(self, product: Product) -> None:
        product.description = self.description


class Specified(Event):
    attributes: dict[str, str]  # all there are from now on

    def apply(self, product: Product) -> None:
        product.attributes = dict(self.attributes)


class Arranged(Event):
    media: tuple[Medium, ...]  # all there are from now on, in the order of showing

    def apply(self, product: Product) -> None:
        product.media = self.media


class OptionsOffered(Event):
    options: tuple[Option, ...]  # all there are from now on

    def apply(self, product: Product) -> None:
        product.options = self.options


class VariantAdded(Event):
    sku: str
    options: dict[str, str]

    def apply(self, product: Product) -> None:
        product.variants[self.sku] = Variant(dict(self.options))

    def claims(self) -> Iterable[Take | Free]:
        return [Take("sku", self.sku)]


class VariantRemoved(Event):
    sku: str

    def apply(self, product: Product) -> None:
        del product.variants[self.sku]

    def claims(self) -> Iterable[Take | Free]:
        return [Free("sku", self.sku)]


class Priced(Event):
    sku: str
    prices: tuple[Money, ...]  # all there are from now on, one a currency
    listed: bool  # it is or was on sale: its row of the catalogue shows the prices

    def apply(self, product: Product) -> None:
        product.variants[self.sku].prices = self.prices


class Published(Event):
    seller: UUID
    title: str
    listings: tuple[Listing, ...]  # the variants that go on sale now

    def apply(self, product: Product) -> None:
        product.status = "published"
        for listing in self.listings:
            product.variants[listing.sku].offer = "listed"


class Withdrawn(Event):
    sku: str

    def apply(self, product: Product) -> None:
        product.variants[self.sku].offer = "withdrawn"


class Relisted(Event):
    sku: str

    def apply(self, product: Product) -> None:
        product.variants[self.sku].offer = "listed"


class Archived(Event):
    skus: tuple[str, ...]  # every variant: none can be sold from now on

    def apply(self, product: Product) -> None:
        product.status = "archived"


# What is allowed.
class Product(Aggregate):
    """`variants` by SKU. Only a `listed` variant of a `published` product can be sold."""

    @event(Drafted)
    def __init__(self, seller: UUID, title: str) -> None:
        self.seller, self.title, self.description = seller, title, ""
        self.status: Status = "draft"
        self.attributes: dict[str, str] = {}
        self.media: tuple[Medium, ...] = ()
        self.options: tuple[Option, ...] = ()
        self.variants: dict[str, Variant] = {}

    @classmethod
    def draft(cls, seller: UUID, title: str = "") -> Product:
        """A new product; the title may follow later."""
        return cls(seller, line(title, "the title", TITLE_CHARS_MAX) if title.strip() else "")

    @classmethod
    def complete(
        cls,
        seller: UUID,
        title: str,
        description: str,
        attributes: Mapping[str, str],
        media: Sequence[Medium],
        options: Sequence[Option],
        variants: Sequence[Listing],
        publish: bool,
    ) -> Product:
        """A new product with all that is known of it, in one commit."""
        made = cls.draft(seller, title)
        made.describe(description)
        made.specify(attributes)
        made.arrange(media)
        made.offer(options)
        for variant in variants:
            require(variant.sku not in made.variants, f"{variant.sku} stands there twice")
            made.add_variant(variant.sku, variant.options, variant.prices)
        if publish:
            made.publish()
        return made

    def retitle(self, title: str) -> None:
        self._changes()
        title = line(title, "the title", TITLE_CHARS_MAX)
        if title != self.title:
            self.trigger_event(Titled, title=title, skus=self._shown())

    def describe(self, description: str) -> None:
        self._changes()
        description = prose(description, "the description", DESCRIPTION_CHARS_MAX)
        if description != self.description:
            self.trigger_event(Described, description=description)

    def specify(self, attributes: Mapping[str, str]) -> None:
        """These attributes and no others, as `{"material": "stoneware"}`."""
        self._changes()
        require(len(attributes) <= ATTRIBUTES_MAX, f"a product has at most {ATTRIBUTES_MAX} attributes")
        names = [line(name, "an attribute's name", NAME_CHARS_MAX) for name in attributes]
        _distinct(names, "attributes")
        made = {
            name: line(value, f"the attribute {name}", VALUE_CHARS_MAX)
            for name, value in zip(names, attributes.values(), strict=True)
        }
        if made != self.attributes:
            self.trigger_event(Specified, attributes=made)

    def arrange(self, media: Sequence[Medium]) -> None:
        """These media and no others, in this order; the first one stands for the product in lists."""
        self._changes()
        require(len(media) <= MEDIA_MAX, f"a product has at most {MEDIA_MAX} media")
        made = tuple(Medium(one.kind, _url(one.url), prose(one.alt, "the alt text", VALUE_CHARS_MAX)) for one in media)
        require(len({one.url for one in made}) == len(made), "a medium stands in the gallery once")
        if made != self.media:
            self.trigger_event(Arranged, media=made)

    def offer(self, options: Sequence[Option]) -> None:
        """These options and no others. With variants there, their options stay and the values that they have."""
        self._changes()
        require(len(options) <= OPTIONS_MAX, f"a product has at most {OPTIONS_MAX} options")
        made = tuple(
            Option(
                line(option.name, "an option's name", NAME_CHARS_MAX),
                tuple(line(value, f"a value of {option.name[:20]}", NAME_CHARS_MAX) for value in option.values),
            )
            for option in options
        )
        _distinct([option.name for option in made], "options")
        for option in made:
            require(0 < len(option.values) <= VALUES_MAX, f"{option.name} has 1 to {VALUES_MAX} values")
            _distinct(option.values, f"values of {option.name}")
        if made == self.options:
            return
        names = {option.name for option in made}
        require(
            not self.variants or names == {option.name for option in self.options},
            "variants have the options as they are",
        )
        for sku, variant in self.variants.items():
            for option in made:
                value = variant.options[option.name]
                require(value in option.values, f"{sku} is of {option.name} {value}")
        self.trigger_event(OptionsOffered, options=made)

    def add_variant(self, sku: str, options: Mapping[str, str], prices: Sequence[Money] = ()) -> None:
        """A variant with one value of each option. It is not on sale before it has a price and the product is published."""
        self._changes()
        sku_of(sku)
        if sku in self.variants:
            require(self.variants[sku].options == dict(options), f"{sku} is another variant of this product")
            return
        require(len(self.variants) < VARIANTS_MAX, f"a product has at most {VARIANTS_MAX} variants")
        names = [option.name for option in self.options]
        require(set(options) == set(names), f"a variant has one value each of: {', '.join(names) or 'no option'}")
        for option in self.options:
            value = options[option.name]
            require(value in option.values, f"{option.name} has no value {value[:NAME_CHARS_MAX]}")
        self._free(options)
        made = _priced(prices)
        self.trigger_event(VariantAdded, sku=sku, options={name: options[name] for name in names})
        if made:
            self.trigger_event(Priced, sku=sku, prices=made, listed=False)

    def remove_variant(self, sku: str) -> None:
        """Drop a variant that never was on sale, and give its SKU back. Removed already: nothing."""
        self._changes()
        if sku in self.variants:
            require(self.variants[sku].offer == "draft", f"{sku} has been on sale, orders name it: withdraw it instead")
            self.trigger_event(VariantRemoved, sku=sku)

    def price(self, sku: str, prices: Sequence[Money]) -> None:
        """These prices of a variant and no others, one a currency, in its minor units."""
        self._changes()
        variant = self._variant(sku)
        made = _priced(prices)
        require(made or variant.offer == "draft", f"{sku} is or was on sale: it keeps a price")
        if made != variant.prices:
            self.trigger_event(Priced, sku=sku, prices=made, listed=variant.offer != "draft")

    def publish(self) -> None:
        """Put the variants that have a price, and never were on sale, on sale. None left to do so: nothing."""
        self._changes()
        ready = tuple(
            Listing(sku, variant.options, variant.prices)
            for sku, variant in self.variants.items()
            if variant.offer == "draft" and variant.prices
        )
        if self.status == "published" and not ready:
            return
        require(self.title, "a product needs a title to be published")
        require(ready, "a product needs a variant with a price to be published")
        self.trigger_event(Published, seller=self.seller, title=self.title, listings=ready)

    def withdraw(self, sku: str) -> None:
        """Take a variant off sale; others stay."""
        self._changes()
        variant = self._variant(sku)
        if variant.offer == "withdrawn":
            return
        require(variant.offer == "listed", f"{sku} is not on sale")
        listed = [other for other in self.variants.values() if other.offer == "listed"]
        require(len(listed) > 1, f"{sku} is the last variant on sale: archive the product instead")
        self.trigger_event(Withdrawn, sku=sku)

    def relist(self, sku: str) -> None:
        """Put a withdrawn variant on sale again."""
        self._changes()
        variant = self._variant(sku)
        if variant.offer == "listed":
            return
        require(variant.offer == "withdrawn", f"{sku} was never on sale: publish the product")
        self._free(variant.options)
        self.trigger_event(Relisted, sku=sku)

    def archive(self) -> None:
        """End the product for good. Variants that never were on sale go, and their SKUs are free."""
        if self.status == "archived":
            return
        for sku in [sku for sku, variant in self.variants.items() if variant.offer == "draft"]:
            self.trigger_event(VariantRemoved, sku=sku)
        self.trigger_event(Archived, skus=self._shown())

    def _changes(self) -> None:
        require(self.status != "archived", "an archived product does not change")

    def _variant(self, sku: str) -> Variant:
        require(sku in self.variants, f"the product has no variant {sku[:80]}")
        return self.variants[sku]

    def _shown(self) -> tuple[str, ...]:
        return tuple(sku for sku, variant in self.variants.items() if variant.offer != "draft")

    def _free(self, options: Mapping[str, str]) -> None:
        for sku, variant in self.variants.items():
            require(
                variant.offer == "withdrawn" or variant.options != options,
                f"{sku} is the variant of {', '.join(options.values()) or 'this product'} already",
            )

    def check(self) -> None:
        names = {option.name for option in self.options}
        assert all(variant.options.keys() == names for variant in self.variants.values()), self.id
        kept = [frozenset(v.options.items()) for v in self.variants.values() if v.offer != "withdrawn"]
        assert len(kept) == len(set(kept)), self.id
        assert all(variant.prices for variant in self.variants.values() if variant.offer == "listed"), self.id
        if self.status == "published":
            assert self.title and any(variant.offer == "listed" for variant in self.variants.values()), self.id
        if self.status == "draft":
            assert all(variant.offer == "draft" for variant in self.variants.values()), self.id


def _distinct(names: Sequence[str], what: str) -> None:
    """Refuse names that a reader takes for one: `Red` and `red`."""
    require(len({name.casefold() for name in names}) == len(names), f"two {what} have the same name")


def _priced(prices: Sequence[Money]) -> tuple[Money, ...]:
    """Prices in the order of their currencies. `Refused` or `Invalid` for what is no price list."""
    for price in prices:
        digits(price.currency)
        require(0 < price.amount <= AMOUNT_MAX, f"a price is between 1 and {AMOUNT_MAX}, not {price.amount}")
    require(len({price.currency for price in prices}) == len(prices), "a variant has one price a currency")
    return tuple(sorted(prices, key=lambda price: price.currency))


def _url(url: str) -> str:
    try:
        parts = urlsplit(url)
        fine = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or len(url) > URL_CHARS_MAX or any(char.isspace() or ord(char) < 33 for char in url):
        raise Invalid(f"a medium is at an https URL of at most {URL_CHARS_MAX} characters")
    return url
