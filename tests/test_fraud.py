from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aggregates.fraud import Case, Confirmed, Dismissed, Raised, Revised, Withdrawn
from tests.kernel import SAID, accepted, fact, given

ADA, BOB, CAUSE, ORDER = (uuid4() for _ in range(4))
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
BY = {"rule": "card_testing", "rule_version": 2}
RAISED = fact(
    Raised, **BY, subject=ADA, score=60, why="6 tries", cause=CAUSE, cause_type="payment.Requested", cause_of=ORDER,
    happened_at=NOW, revision=2,
)  # fmt: skip
REVISED = fact(Revised, **BY, subject=BOB, score=70, why="7 tries", revision=3)
WITHDRAWN = fact(Withdrawn, **BY, revision=3)
CONFIRMED = fact(Confirmed, **BY, reason="", because=SAID)
DISMISSED = fact(Dismissed, **BY, reason="", because=SAID)


def test_a_rule_raises_a_case_under_an_id_of_its_version_and_the_event() -> None:
    given(Case).opening(Case, "card_testing", 2, ADA, 60, "6 tries", CAUSE, "payment.Requested", ORDER, NOW, 2).then(
        RAISED
    )
    ids = {Case.id_of(name, n, cause) for name in ("a", "b") for n in (1, 2) for cause in (CAUSE, ORDER)}
    assert len(ids) == 8
    assert Case.id_of("a", 1, CAUSE) == Case.id_of("a", 1, CAUSE)


def test_a_late_event_changes_what_the_rule_says() -> None:
    given(Case, RAISED).when(Case.revise, BOB, 70, "7 tries", 3).then(REVISED)
    given(Case, RAISED).when(Case.withdraw, 3).then(WITHDRAWN)
    given(Case, RAISED, WITHDRAWN).when(Case.revise, ADA, 60, "6 tries", 4).then(
        fact(Revised, **BY, subject=ADA, score=60, why="6 tries", revision=4)
    )


def test_what_the_rule_said_before_comes_too_late() -> None:
    for revision in (1, 2):
        given(Case, RAISED).when(Case.withdraw, revision).nothing()
        given(Case, RAISED).when(Case.revise, BOB, 1, "x", revision).nothing()
    given(Case, RAISED, WITHDRAWN).when(Case.revise, BOB, 70, "7 tries", 3).nothing()


def test_a_person_says_what_it_is() -> None:
    given(Case, RAISED).when(Case.confirm, SAID).then(CONFIRMED)
    given(Case, RAISED).when(Case.dismiss, SAID).then(DISMISSED)
    given(Case, RAISED, WITHDRAWN).when(Case.confirm, SAID).then(CONFIRMED)
    given(Case, RAISED, CONFIRMED).when(Case.confirm, SAID).nothing()
    given(Case, RAISED, DISMISSED).when(Case.dismiss, SAID).nothing()


def test_a_verdict_is_final_and_the_rule_may_go_on() -> None:
    given(Case, RAISED, CONFIRMED).when(Case.dismiss, SAID).refused("confirmed already")
    given(Case, RAISED, DISMISSED).when(Case.confirm, SAID).refused("dismissed already")
    given(Case, RAISED, CONFIRMED).when(Case.withdraw, 3).then(WITHDRAWN)
    assert given(Case, RAISED, CONFIRMED, WITHDRAWN).state.verdict == "confirmed"


class Machine(RuleBasedStateMachine):
    """The rule's words in any order, and people's: the newest word stands, the first verdict does."""

    def __init__(self) -> None:
        super().__init__()
        self.case = Case("r", 1, ADA, 1, "why", CAUSE, "x.Y", ORDER, NOW, 1)
        self.newest, self.stands, self.verdict = 1, True, "open"

    @rule(revision=st.integers(1, 6), subject=st.sampled_from([ADA, BOB]), stands=st.booleans())
    def the_rule_says(self, revision: int, subject: UUID, stands: bool) -> None:
        done = (
            accepted(self.case.revise, subject, 5, "w", revision) if stands else accepted(self.case.withdraw, revision)
        )
        assert done
        if revision > self.newest:
            self.newest, self.stands = revision, stands

    @precondition(lambda self: self.verdict == "open")
    @rule(fraud=st.booleans())
    def somebody_decides(self, fraud: bool) -> None:
        assert accepted(self.case.confirm if fraud else self.case.dismiss, SAID)
        self.verdict = "confirmed" if fraud else "dismissed"

    @precondition(lambda self: self.verdict != "open")
    @rule(fraud=st.booleans())
    def somebody_else_decides(self, fraud: bool) -> None:
        same = self.verdict == ("confirmed" if fraud else "dismissed")
        assert accepted(self.case.confirm if fraud else self.case.dismiss, SAID) == same

    @invariant()
    def the_newest_word_and_the_first_verdict_stand(self) -> None:
        assert (self.case.revision, self.case.stands, self.case.verdict) == (self.newest, self.stands, self.verdict)


TestCase = Machine.TestCase
