"""Codes: read whatever way they are typed, and a slip is found before anybody is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregates.kernel import Invalid
from aggregates.kernel.code import ALPHABET, RANDOM_CHARS, hint_of, keyed_hash, new_code, read_code, shown

KNOWN = "7K3M9-Q2XB0-4F6HT-8JZ5W-C1VN"
PLAIN = "8C1B089V7EBTH0SB9DEFWZGHS"  # fixed, as the names of tests have to be
letters = st.text(ALPHABET, min_size=RANDOM_CHARS, max_size=RANDOM_CHARS)


def test_a_code_has_120_bits_and_its_hint_leaves_100() -> None:
    assert len(ALPHABET) == len(set(ALPHABET)) == 32
    assert 5 * RANDOM_CHARS == 120
    made = {read_code(new_code()) for _ in range(200)}
    assert len(made) == 200
    for place in range(RANDOM_CHARS):
        assert len({code[place] for code in made}) > 16, "a place that hardly varies"
    assert 5 * (RANDOM_CHARS - (len(hint_of(PLAIN)) - 1) - 1) >= 100  # its last character is the check


@pytest.mark.parametrize(
    "typed", [shown(PLAIN), PLAIN.lower(), " ".join(PLAIN), PLAIN.replace("1", "l").replace("0", "o"), f" {PLAIN}-"]
)
def test_a_code_is_read_in_any_way_it_is_typed(typed: str) -> None:
    assert read_code(typed) == PLAIN


@given(st.integers(0, RANDOM_CHARS), st.sampled_from(ALPHABET))
def test_a_wrong_letter_is_found(place: int, letter: str) -> None:
    wrong = PLAIN[:place] + letter + PLAIN[place + 1 :]
    if wrong != PLAIN:
        with pytest.raises(Invalid, match="a letter of the code is wrong"):
            read_code(wrong)


@given(st.integers(0, RANDOM_CHARS - 1))
def test_neighbours_that_are_swapped_are_found(place: int) -> None:
    one, other = PLAIN[place], PLAIN[place + 1]
    swapped = PLAIN[:place] + other + one + PLAIN[place + 2 :]
    if swapped != PLAIN and {one, other} != {"0", "Z"}:
        with pytest.raises(Invalid, match="a letter"):
            read_code(swapped)


@pytest.mark.parametrize("typed", ["", PLAIN[:-1], PLAIN + "0", PLAIN[:-1] + "U", KNOWN, "ß" * 25, "1" * 10_000])
def test_what_is_no_code_is_refused(typed: str) -> None:
    with pytest.raises(Invalid):
        read_code(typed)


def test_a_hash_says_nothing_without_its_key() -> None:
    assert keyed_hash(b"a", PLAIN) == keyed_hash(b"a", PLAIN) != keyed_hash(b"b", PLAIN)
    assert len(keyed_hash(b"a", PLAIN)) == 64
