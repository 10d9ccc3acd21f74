"""Fraud rules: what one is, and why the live stream and a back-test agree hit for hit.

A rule judges each event by the events of the same key up to it: an account's payments of the last ten minutes, whichever
partitions, batches and processes they came by. Three things could make two runs over one log differ, and none of them may:

1. *The order of arrival.* Partitions have none among each other, and events come late: a clock was wrong, a broker was away. So
   arrival plays no part. The events of a key are ordered by time, then domain, then notification id: all in the log, the same for
   every reader. The window of an event e is every event of its key not after e in that order and less than `window_s` before e
   (of these the last `events_max`). So D(S), the hits of a set S of events, is a function of S as a set.
2. *What was judged before a late event came.* A late event f changes just the windows of the events from f to f + `window_s`: they
   are judged anew, and a hit that came, changed or went is raised, revised or withdrawn, under one id made of rule, version and
   event. So after any events S in any order what stands is D(S), exactly: the state kept is S itself, as far back as is needed.
   Nothing waits for a watermark, so a quiet partition holds up no hit; the price is that a hit may be withdrawn, by a rule whose
   hits can go when a window grows. Rules that only count up never withdraw.
3. *When state is forgotten.* An event is kept until no partition that the rule reads, nor the clock, is less than `late_s` and a
   window ahead of it. An event that is later than that finds its window gone: it is parked with ALARM, never judged by half.

A back-test computes D of the same log, less what comes too late by the same horizon, so it equals what stands on `titan.fraud` once the live stream has read the same records;
`tests/streams/kernel/test_rules.py` has that as a property, over interleavings, batches, restarts, kills and late events.

Live state is in Postgres by rule and key, not by partition (`host`): the events of one account lie in several partitions, which two
processes may be folding at a time. Whoever changes a key holds its lock until the commit, which also moves the position.
"""

from __future__ import annotations

from streams.kernel.rules.rule import Hit, Rule, Window, rule
from streams.kernel.rules.secret import Secret

__all__ = ["Hit", "Rule", "Secret", "Window", "rule"]
