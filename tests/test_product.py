from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aggregates.kernel import Invalid, Money
from aggregates.kernel.currency import decimal, digits, minor
from aggregates.kernel.money import AMOUNT_MAX
from aggregates.kernel.text import line, prose
from aggregates.product import (
    ATTRIBUTES_MAX,
    MEDIA_MAX,
    OPTIONS_MAX,
    TITLE_CHARS_MAX,
    VALUES_MAX,
    VARIANTS_MAX,
    Archived,
    Arranged,
    Described,
    Drafted,
    Listing,
    Medium,
    Option,
    OptionsOffered,
    Priced,
    Product,
    Published,
    Relisted,
    Specified,
    Titled,
    VariantAdded,
    VariantRemoved,
    Withdrawn,
)
from tests.kernel import accepted, fact, given

ADA = uuid4()
COLOUR, SIZE = Option("Colour", ("red", "blue")), Option("Size", ("S", "L"))
EUROS = (Money(1999, "EUR"),)
DRAFT = fact(Drafted, seller=ADA, title="Mug")
OFFERED = fact(OptionsOffered, options=(COLOUR, SIZE))
RED_S, RED_L = {"Colour": "red", "Size": "S"}, {"Colour": "red", "Size": "L"}
MUGS = (DRAFT, OFFERED, fact(VariantAdded, sku="MUG-1", options=RED_S), fact(VariantAdded, sku="MUG-2", options=RED_L))
PRICED = tuple(fact(Priced, sku=sku, prices=EUROS, listed=False) for sku in ("MUG-1", "MUG-2"))
FIRST, SECOND = Listing("MUG-1", RED_S, EUROS), Listing("MUG-2", RED_L, EUROS)
ON_SALE = (*MUGS, *PRICED, fact(Published, seller=ADA, title="Mug", listings=(FIRST, SECOND)))
WITHDRAWN = (*ON_SALE, fact(Withdrawn, sku="MUG-2"))


# Text
@pytest.mark.parametrize(
    "title",
    ["Käse", "茶碗", "כוס אדומה", "قهوه\u200cخانه", "लाल मग", "👩‍👩‍👧 mug", "\U0001fae9"],
)
def test_a_title_is_text_in_any_script(title: str) -> None:
    given(Product, DRAFT).when(Product.retitle, title).then(fact(Titled, title=title, skus=()))


def test_a_title_is_one_line_in_one_form() -> None:
    given(Product, DRAFT).when(Product.retitle, " Cafe\u0301 \n mug ").then(fact(Titled, title="Café mug", skus=()))


@pytest.mark.parametrize("title", ["", " \t\n", "\u200b\u200d", "\u2028"])
def test_a_title_shows_something(title: str) -> None:
    given(Product, DRAFT).when(Product.retitle, title).refused("the title is empty")


@pytest.mark.parametrize("title", ["mug\x00", "mug\x1b[31m", "mug\ud800", "mug\x7f"])
def test_a_title_has_no_control_characters(title: str) -> None:
    given(Product, DRAFT).when(Product.retitle, title).refused("a character that is not text")


def test_a_title_has_a_limit() -> None:
    longest = "ü" * TITLE_CHARS_MAX
    given(Product, DRAFT).when(Product.retitle, longest).then(fact(Titled, title=longest, skus=()))
    given(Product, DRAFT).when(Product.retitle, longest + "x").refused(f"{TITLE_CHARS_MAX} is the most")


def test_prose_keeps_its_lines() -> None:
    given(Product, DRAFT).when(Product.describe, " a\r\nb\tc\n").then(fact(Described, description="a\nb\tc"))
    given(Product, DRAFT).when(Product.describe, " ").nothing()


@pytest.mark.parametrize("text", ["ﬁ", "İstanbul", "ß", "a\u0301\u0301", "  x  y "])
def test_cleaned_text_stays_as_it_is(text: str) -> None:
    assert line(line(text, "it", 99), "it", 99) == line(text, "it", 99)
    assert prose(prose(text, "it", 99), "it", 99) == prose(text, "it", 99)


def test_the_same_text_again_does_nothing() -> None:
    given(Product, DRAFT).when(Product.retitle, "Mug").nothing()
    given(Product, DRAFT, fact(Described, description="Red.")).when(Product.describe, "Red.").nothing()


def test_a_draft_may_lack_a_title() -> None:
    given(Product).opening(Product.draft, ADA).then(fact(Drafted, seller=ADA, title=""))
    given(Product).opening(Product.draft, ADA, " Mug ").then(DRAFT)


# Attributes, media, options
def test_attributes_are_replaced_as_a_whole() -> None:
    specified = fact(Specified, attributes={"material": "stoneware"})
    given(Product, DRAFT).when(Product.specify, {" material ": "stoneware"}).then(specified)
    given(Product, DRAFT, specified).when(Product.specify, {"material": "stoneware"}).nothing()
    given(Product, DRAFT, specified).when(Product.specify, {}).then(fact(Specified, attributes={}))


@pytest.mark.parametrize("other", ["MATERIAL", "material ", "ma\u0301terial"])
def test_attributes_have_names_of_their_own(other: str) -> None:
    first = "m\u00e1terial" if "\u0301" in other else "material"
    given(Product, DRAFT).when(Product.specify, {first: "x", other: "y"}).refused("two attributes have the same name")


def test_attributes_have_a_limit() -> None:
    most = {f"a{n}": "x" for n in range(ATTRIBUTES_MAX)}
    given(Product, DRAFT).when(Product.specify, most).then(fact(Specified, attributes=most))
    given(Product, DRAFT).when(Product.specify, most | {"b": "x"}).refused(f"at most {ATTRIBUTES_MAX}")


def test_media_keep_their_order() -> None:
    front, back = (Medium("image", f"https://img.example/{side}.jpg", side) for side in ("front", "back"))
    arranged = fact(Arranged, media=(front, back))
    given(Product, DRAFT).when(Product.arrange, [front, back]).then(arranged)
    given(Product, DRAFT, arranged).when(Product.arrange, [back, front]).then(fact(Arranged, media=(back, front)))
    given(Product, DRAFT, arranged).when(Product.arrange, [front, back]).nothing()
    given(Product, DRAFT, arranged).when(Product.arrange, []).then(fact(Arranged, media=()))
    given(Product, DRAFT).when(Product.arrange, [front, front]).refused("once")


def test_media_have_a_limit() -> None:
    most = tuple(Medium("image", f"https://img.example/{n}.jpg", "") for n in range(MEDIA_MAX))
    given(Product, DRAFT).when(Product.arrange, most).then(fact(Arranged, media=most))
    one_more = Medium("video", "https://img.example/more.mp4", "")
    given(Product, DRAFT).when(Product.arrange, [*most, one_more]).refused(f"at most {MEDIA_MAX}")


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/x",
        "javascript:alert(1)",
        "https://",
        "https://a.example/a b",
        "https://[::1",
        "",
        "https://a.example:x/",
    ],
)
def test_a_medium_is_at_an_https_url(url: str) -> None:
    given(Product, DRAFT).when(Product.arrange, [Medium("image", url, "")]).refused("https URL")


def test_options_have_limits_and_distinct_names() -> None:
    values = tuple(map(str, range(VALUES_MAX)))
    most = tuple(Option(f"o{n}", values) for n in range(OPTIONS_MAX))
    given(Product, DRAFT).when(Product.offer, most).then(fact(OptionsOffered, options=most))
    given(Product, DRAFT).when(Product.offer, [*most, COLOUR]).refused(f"at most {OPTIONS_MAX} options")
    given(Product, DRAFT).when(Product.offer, [Option("o", (*values, "x"))]).refused(f"1 to {VALUES_MAX} values")
    given(Product, DRAFT).when(Product.offer, [Option("o", ())]).refused("1 to")
    given(Product, DRAFT).when(Product.offer, [COLOUR, Option("COLOUR", ("x",))]).refused("two options")
    given(Product, DRAFT).when(Product.offer, [Option("Size", ("s", "S"))]).refused("two values of Size")


def test_options_grow_under_variants_and_never_leave_them_without_a_value() -> None:
    more = (Option("Size", ("S", "M", "L")), COLOUR)
    given(Product, *MUGS).when(Product.offer, more).then(fact(OptionsOffered, options=more))
    given(Product, *MUGS).when(Product.offer, [COLOUR]).refused("variants have the options as they are")
    given(Product, *MUGS).when(Product.offer, [COLOUR, SIZE, Option("Lid", ("yes",))]).refused("as they are")
    given(Product, *MUGS).when(Product.offer, [COLOUR, Option("Size", ("S",))]).refused("MUG-2 is of Size L")
    given(Product, *MUGS).when(Product.offer, [COLOUR, SIZE]).nothing()


# Variants
def test_a_variant_takes_its_sku_and_gives_it_back() -> None:
    added = given(Product, *MUGS).state
    Product.add_variant(added, "MUG-3", {"Colour": "blue", "Size": "S"})
    Product.remove_variant(added, "MUG-3")
    taken, freed = ([*event.claims()] for event in added.collect_events())
    assert [type(one).__name__ for one in taken + freed] == ["Take", "Free"]
    assert {(one.scope, one.key) for one in taken + freed} == {("sku", "MUG-3")}


def test_a_variant_has_one_value_of_each_option() -> None:
    blue = {"Size": "S", "Colour": "blue"}
    given(Product, *MUGS).when(Product.add_variant, "MUG-3", blue).then(fact(VariantAdded, sku="MUG-3", options=blue))
    given(Product, *MUGS).when(Product.add_variant, "MUG-3", {"Size": "S"}).refused("one value each of: Colour, Size")
    given(Product, *MUGS).when(Product.add_variant, "MUG-3", {**blue, "Lid": "x"}).refused("one value each")
    given(Product, *MUGS).when(Product.add_variant, "MUG-3", {**blue, "Size": "XL"}).refused("Size has no value XL")


def test_a_product_without_options_has_one_variant() -> None:
    added = fact(VariantAdded, sku="MUG", options={})
    given(Product, DRAFT).when(Product.add_variant, "MUG", {}).then(added)
    given(Product, DRAFT, added).when(Product.add_variant, "MUG", {}).nothing()
    given(Product, DRAFT, added).when(Product.add_variant, "CUP", {}).refused("MUG is the variant of this product")
    given(Product, DRAFT, added).when(Product.offer, [COLOUR]).refused("as they are")


def test_a_combination_of_options_is_one_variant() -> None:
    given(Product, *MUGS).when(Product.add_variant, "MUG-3", RED_S).refused("MUG-1 is the variant of red, S already")
    given(Product, *MUGS).when(Product.add_variant, "MUG-1", RED_S).nothing()
    given(Product, *MUGS).when(Product.add_variant, "MUG-1", RED_L).refused("another variant")


@pytest.mark.parametrize("sku", ["", "-A", "A B", "Ä1", "A" * 65, "A\n", "../A", "A/B", "\u0661"])
def test_a_sku_fits_into_urls_and_labels(sku: str) -> None:
    given(Product, DRAFT).when(Product.add_variant, sku, {}).refused("a SKU is")


def test_variants_have_a_limit() -> None:
    option = Option("n", tuple(f"{n}" for n in range(16)))
    option2 = Option("m", tuple(f"{n}" for n in range(16)))
    pairs = [(n, m) for n in range(16) for m in range(16)]
    past = [
        fact(VariantAdded, sku=f"V{n}-{m}", options={"n": f"{n}", "m": f"{m}"}) for n, m in pairs[: VARIANTS_MAX - 1]
    ]
    almost = given(Product, DRAFT, fact(OptionsOffered, options=(option, option2)), *past)
    last, over = ({"n": f"{n}", "m": f"{m}"} for n, m in pairs[VARIANTS_MAX - 1 : VARIANTS_MAX + 1])
    almost.when(Product.add_variant, "LAST", last).then(fact(VariantAdded, sku="LAST", options=last))
    full = given(
        Product,
        DRAFT,
        fact(OptionsOffered, options=(option, option2)),
        *past,
        fact(VariantAdded, sku="LAST", options=last),
    )
    full.when(Product.add_variant, "OVER", over).refused(f"at most {VARIANTS_MAX} variants")


def test_only_a_variant_that_never_was_on_sale_is_removed() -> None:
    given(Product, *MUGS).when(Product.remove_variant, "MUG-1").then(fact(VariantRemoved, sku="MUG-1"))
    given(Product, *MUGS).when(Product.remove_variant, "OTHER").nothing()
    given(Product, *ON_SALE).when(Product.remove_variant, "MUG-1").refused("withdraw it instead")
    given(Product, *WITHDRAWN).when(Product.remove_variant, "MUG-2").refused("orders name it")


# Prices
def test_prices_are_per_currency_in_minor_units() -> None:
    prices = (Money(1999, "EUR"), Money(2200, "JPY"), Money(7500, "KWD"))
    given(Product, *MUGS).when(Product.price, "MUG-1", prices[::-1]).then(
        fact(Priced, sku="MUG-1", prices=prices, listed=False)
    )
    given(Product, *ON_SALE).when(Product.price, "MUG-1", EUROS).nothing()
    cheap = (Money(1, "EUR"),)
    given(Product, *WITHDRAWN).when(Product.price, "MUG-2", cheap).then(
        fact(Priced, sku="MUG-2", prices=cheap, listed=True)
    )


def test_a_price_is_an_amount_of_a_currency() -> None:
    cheapest, dearest = ((Money(amount, "EUR"),) for amount in (1, AMOUNT_MAX))
    given(Product, *MUGS).when(Product.price, "MUG-1", cheapest).then(
        fact(Priced, sku="MUG-1", prices=cheapest, listed=False)
    )
    given(Product, *MUGS).when(Product.price, "MUG-1", dearest).then(
        fact(Priced, sku="MUG-1", prices=dearest, listed=False)
    )
    for amount in (0, -1, AMOUNT_MAX + 1, 10**30):
        given(Product, *MUGS).when(Product.price, "MUG-1", [Money(amount, "EUR")]).refused("a price is between 1 and")
    for currency in ("eur", "XXX", "XAU", "", "€"):
        given(Product, *MUGS).when(Product.price, "MUG-1", [Money(1, currency)]).refused("not a currency of ISO 4217")
    given(Product, *MUGS).when(Product.price, "MUG-1", [Money(1, "EUR"), Money(2, "EUR")]).refused(
        "one price a currency"
    )
    given(Product, *MUGS).when(Product.price, "CUP", EUROS).refused("no variant CUP")


def test_what_is_or_was_on_sale_keeps_a_price() -> None:
    given(Product, *MUGS, *PRICED).when(Product.price, "MUG-1", []).then(
        fact(Priced, sku="MUG-1", prices=(), listed=False)
    )
    given(Product, *ON_SALE).when(Product.price, "MUG-1", []).refused("keeps a price")
    given(Product, *WITHDRAWN).when(Product.price, "MUG-2", []).refused("keeps a price")


@pytest.mark.parametrize(
    ("text", "currency", "amount"), [("19.99", "EUR", 1999), ("1999", "JPY", 1999), ("1.999", "KWD", 1999)]
)
def test_minor_units_of_a_currency(text: str, currency: str, amount: int) -> None:
    assert minor(text, currency) == amount
    assert decimal(amount, currency) == text


@pytest.mark.parametrize(
    ("text", "currency"), [("19.999", "EUR"), ("0.5", "JPY"), ("NaN", "EUR"), ("1e999999999", "EUR"), ("", "EUR")]
)
def test_what_is_not_whole_minor_units_is_refused(text: str, currency: str) -> None:
    with pytest.raises(Invalid):
        minor(text, currency)
    assert digits("EUR") == 2


# On sale and off
def test_publishing_needs_a_title_and_a_variant_with_a_price() -> None:
    nameless = (fact(Drafted, seller=ADA, title=""), *MUGS[1:], *PRICED)
    given(Product, *nameless).when(Product.publish).refused("needs a title")
    given(Product, DRAFT).when(Product.publish).refused("needs a variant with a price")
    given(Product, *MUGS).when(Product.publish).refused("needs a variant with a price")


def test_publishing_puts_priced_variants_on_sale() -> None:
    published = fact(Published, seller=ADA, title="Mug", listings=(FIRST,))
    given(Product, *MUGS, PRICED[0]).when(Product.publish).then(published)
    given(Product, *MUGS, PRICED[0], published).when(Product.publish).nothing()
    later = fact(Published, seller=ADA, title="Mug", listings=(SECOND,))
    given(Product, *MUGS, *PRICED[:1], published, PRICED[1]).when(Product.publish).then(later)
    given(Product, *WITHDRAWN).when(Product.publish).nothing()


def test_a_title_changes_on_what_is_or_was_on_sale() -> None:
    given(Product, *WITHDRAWN).when(Product.retitle, "Cup").then(fact(Titled, title="Cup", skus=("MUG-1", "MUG-2")))


def test_a_variant_goes_off_sale_and_on_again() -> None:
    given(Product, *ON_SALE).when(Product.withdraw, "MUG-2").then(fact(Withdrawn, sku="MUG-2"))
    given(Product, *WITHDRAWN).when(Product.withdraw, "MUG-2").nothing()
    given(Product, *WITHDRAWN).when(Product.withdraw, "MUG-1").refused("the last variant on sale")
    given(Product, *WITHDRAWN).when(Product.relist, "MUG-2").then(fact(Relisted, sku="MUG-2"))
    given(Product, *ON_SALE).when(Product.relist, "MUG-2").nothing()
    given(Product, *MUGS).when(Product.relist, "MUG-2").refused("never on sale")
    given(Product, *MUGS).when(Product.withdraw, "MUG-2").refused("is not on sale")


def test_a_withdrawn_variant_is_succeeded_by_another_sku() -> None:
    again = fact(VariantAdded, sku="MUG-2B", options=RED_L)
    given(Product, *WITHDRAWN).when(Product.add_variant, "MUG-2B", RED_L).then(again)
    given(Product, *WITHDRAWN, again).when(Product.relist, "MUG-2").refused("MUG-2B is the variant of red, L already")
    given(Product, *WITHDRAWN).when(Product.add_variant, "MUG-2", RED_L).nothing()


def test_an_archived_product_is_over() -> None:
    archived = fact(Archived, skus=("MUG-1", "MUG-2"))
    given(Product, *WITHDRAWN).when(Product.archive).then(archived)
    over = given(Product, *WITHDRAWN, archived)
    over.when(Product.archive).nothing()
    for outcome in (
        over.when(Product.publish),
        over.when(Product.retitle, "Cup"),
        over.when(Product.describe, "x"),
        over.when(Product.specify, {}),
        over.when(Product.arrange, []),
        over.when(Product.offer, []),
        over.when(Product.add_variant, "MUG-3", {}),
        over.when(Product.remove_variant, "MUG-1"),
        over.when(Product.price, "MUG-1", EUROS),
        over.when(Product.withdraw, "MUG-1"),
        over.when(Product.relist, "MUG-2"),
    ):
        outcome.refused("an archived product does not change")


def test_archiving_frees_what_never_was_on_sale() -> None:
    removed = [fact(VariantRemoved, sku=sku) for sku in ("MUG-1", "MUG-2")]
    given(Product, *MUGS).when(Product.archive).then(*removed, fact(Archived, skus=()))


class Machine(RuleBasedStateMachine):
    """Any commands in any order. What is on sale has a title and a price, and what once was on sale is never lost."""

    SKUS = st.sampled_from(["A", "B", "C", "D"])
    VALUES = st.lists(st.sampled_from("sml"), min_size=1, max_size=3, unique=True).map(tuple)
    OPTIONS = st.lists(st.builds(Option, st.sampled_from(["size", "fit"]), VALUES), max_size=2)
    CHOICES = st.dictionaries(st.sampled_from(["size", "fit"]), st.sampled_from("smlx"), max_size=2)
    PRICES = st.lists(st.builds(Money, st.integers(-1, 3), st.sampled_from(["EUR", "JPY", "eur"])), max_size=2)

    def __init__(self) -> None:
        super().__init__()
        self.product = Product.draft(ADA)
        self.was_on_sale: set[str] = set()
        self.over = False

    @rule(title=st.text(max_size=4))
    def retitle(self, title: str) -> None:
        accepted(self.product.retitle, title)

    @rule(text=st.text(max_size=4))
    def describe(self, text: str) -> None:
        accepted(self.product.describe, text)

    @rule(attributes=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3))
    def specify(self, attributes: dict[str, str]) -> None:
        accepted(self.product.specify, attributes)

    @rule(options=OPTIONS)
    def offer(self, options: list[Option]) -> None:
        accepted(self.product.offer, options)

    @rule(sku=SKUS, options=CHOICES)
    def add_variant(self, sku: str, options: dict[str, str]) -> None:
        accepted(self.product.add_variant, sku, options)

    @rule(sku=SKUS, data=st.data())
    def add_fitting_variant(self, sku: str, data: st.DataObject) -> None:
        values = {option.name: data.draw(st.sampled_from(option.values)) for option in self.product.options}
        accepted(self.product.add_variant, sku, values)

    @rule(sku=SKUS)
    def remove_variant(self, sku: str) -> None:
        accepted(self.product.remove_variant, sku)

    @rule(sku=SKUS, prices=PRICES)
    def price(self, sku: str, prices: list[Money]) -> None:
        accepted(self.product.price, sku, prices)

    @rule(sku=SKUS)
    def price_well(self, sku: str) -> None:
        accepted(self.product.price, sku, EUROS)

    @rule()
    def publish(self) -> None:
        accepted(self.product.publish)

    @rule(sku=SKUS)
    def withdraw(self, sku: str) -> None:
        accepted(self.product.withdraw, sku)

    @rule(sku=SKUS)
    def relist(self, sku: str) -> None:
        accepted(self.product.relist, sku)

    @precondition(lambda self: len(self.was_on_sale) > 1)
    @rule()
    def archive(self) -> None:
        self.over = accepted(self.product.archive)

    @invariant()
    def what_is_on_sale_can_be_bought(self) -> None:
        product = self.product
        product.check()
        self.was_on_sale |= {sku for sku, variant in product.variants.items() if variant.offer != "draft"}
        assert self.was_on_sale <= product.variants.keys()
        assert self.over == (product.status == "archived")
        for variant in product.variants.values():
            assert variant.offer == "draft" or (variant.prices and product.title)


TestProduct = Machine.TestCase
