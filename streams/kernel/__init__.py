"""The words that a saga or a reactor may use."""

from __future__ import annotations

from streams.kernel.reactor import Reactor, reacts
from streams.kernel.saga import NOTHING, Effect, OpenAs, Saga, Step, Tell, Wait, ensure, open_as, tell

__all__ = [
    "NOTHING",
    "Effect",
    "OpenAs",
    "Reactor",
    "Saga",
    "Step",
    "Tell",
    "Wait",
    "ensure",
    "open_as",
    "reacts",
    "tell",
]
