"""The table of evidence: what a verdict rests on, line by line. Pure, and decides nothing."""

from datetime import UTC, datetime, timedelta

from airflow_tune_restore.experiments.facts import Facts
from airflow_tune_restore.experiments.health import Evidence, Sign, patience, span, span_of

ALIVE, DEAD = "alive", "dead"

_CLOCKS_AGREE = timedelta(minutes=2)
"""A state is written within this of the newest result in it, or the clocks of the two differ."""


def describe_evidence(
    facts: Facts | None, evidence: Evidence, *, stale_after: timedelta
) -> tuple[Sign, ...]:
    """Return the table of one experiment; `facts` is None where no state could be read."""
    allowed, why = (stale_after, "stale_after") if facts is None else patience(facts, stale_after)
    signs = [
        _written("newest write to its root", evidence.root_written, evidence, allowed),
        _written(
            "newest write to its unfinished trials", evidence.trials_written, evidence, allowed
        )
        if evidence.trials_written is not None
        else Sign(name="newest write to its unfinished trials", found="not needed, or none"),
        Sign(name="silence allowed", found=f"{span(allowed)} ({why})"),
        _commit(evidence),
        _restore(evidence),
        _driver(evidence),
    ]
    if facts is None:
        return tuple(signs)
    return (*signs, _trials(facts), _samples(facts), _start(evidence), *_rhythm(facts, evidence))


def _written(name: str, at: datetime | None, evidence: Evidence, allowed: timedelta) -> Sign:
    if at is None:
        return Sign(name=name, found="the store does not say", speaks_for=ALIVE)
    age = evidence.now - at
    if age < -_CLOCKS_AGREE:
        found = f"{at:%Y-%m-%d %H:%M:%S}, {span(-age)} in the future of the store's clock"
        return Sign(name=name, found=found, speaks_for=ALIVE)
    found = f"{at:%Y-%m-%d %H:%M:%S}, {span(age)} ago"
    if evidence.committed_at is not None and at <= evidence.committed_at:
        return Sign(name=name, found=f"{found}, by a restore")
    return Sign(name=name, found=found, speaks_for=DEAD if age >= allowed else ALIVE)


def _commit(evidence: Evidence) -> Sign:
    at = evidence.committed_at
    found = f"the newest state, {at:%Y-%m-%d %H:%M:%S}" if at else "did not make the newest state"
    own = evidence.is_our_own
    return Sign(name="commit of a restore", found=found, speaks_for=DEAD if own else "")


def _restore(evidence: Evidence) -> Sign:
    name, sign = "restore at work", evidence.restore
    if sign is None:
        return Sign(name=name, found="none")
    found = (
        f"{sign.lease.restore_id} of {sign.lease.holder}, silent for {span_of(sign.silent_seconds)} "
        f"(dead after {span_of(sign.lease.ttl_seconds)})"
    )
    return Sign(name=name, found=found, speaks_for=ALIVE if sign.is_alive else "")


def _driver(evidence: Evidence) -> Sign:
    name, sign = "driver on Ray", evidence.driver
    if sign is None:
        return Sign(name=name, found="nobody was asked, or need be")
    return Sign(name=name, found=sign.found, speaks_for=ALIVE if sign.is_running else "")


def _trials(facts: Facts) -> Sign:
    counts = ", ".join(f"{count} {status}" for status, count in facts.trials.items())
    return Sign(name="trials", found=counts, speaks_for="" if facts.unfinished else DEAD)


def _samples(facts: Facts) -> Sign:
    left = facts.samples_left
    asked = "not known" if left is None else f"{left} never drawn"
    return Sign(name="samples", found=asked)


def _start(evidence: Evidence) -> Sign:
    if not evidence.is_restarting:
        return Sign(name="start of a new driver", found="none since the newest state")
    return Sign(
        name="start of a new driver",
        found=f"tuner.pkl was written {evidence.tuner_written:%H:%M:%S}, after the newest state",
        speaks_for=ALIVE,
    )


def _rhythm(facts: Facts, evidence: Evidence) -> list[Sign]:
    every = facts.snapshot_period
    interval = span_of(facts.longest_interval) if facts.longest_interval else "not recorded"
    return [
        Sign(
            name="snapshots of its driver",
            found="as often as they are cheap" if every is None else f"every {every:g} s",
        ),
        Sign(name="slowest iteration", found=interval),
        Sign(name="clock of its driver", found=_clock(facts, evidence)),
    ]


def _clock(facts: Facts, evidence: Evidence) -> str:
    """Hold the driver's clock against the store's; which of them is right does not matter to us."""
    if facts.last_result is None or evidence.state_written is None or evidence.committed_at:
        return "cannot be told"
    try:
        ahead = datetime.fromtimestamp(facts.last_result, UTC) - evidence.state_written
    except (OverflowError, OSError, ValueError):
        return "tells no time"
    if ahead > _CLOCKS_AGREE:
        return f"{span(ahead)} ahead of the store's"
    return f"not ahead of the store's; newest result {span(-ahead)} before the newest state"
