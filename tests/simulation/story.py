"""The story of a world as text: its script in plain words, then its events, one per line.

By default it leaves out what matters seldom: reads, heartbeats, renewals of the lease, self-tests,
progress and states of searchers, and the requests behind the changes (a change is told when the store
carries it out).
"""

import re
from collections.abc import Iterator

from tests.simulation.airflow import Meddling
from tests.simulation.night import Ended, Script, simulate

_REQUEST = re.compile(r"(list|walk|get|put|create|delete|now) ?(?P<key>\S*)( -> (?P<result>.*))?$")
_SELDOM = re.compile(
    r"OVERWRITES \S*/heartbeat\.json$|\w+ \S*/lease/\S*heartbeat\.json$|\w+ \S*/selftest-"
    r"|\w+ \S*/progress\.json$|\w+ \S*/searcher/|.*\(the same\)$"
)
_MEDDLINGS = {
    "twice": "{task} is started twice, the second time {seconds:.0f} s after the first",
    "lost": "Airflow takes {task} for dead after {seconds:.0f} s, although it lives",
    "clear": "{task} is cleared after {seconds:.0f} s",
    "stop": "{task} is stopped by its `execution_timeout` after {seconds:.0f} s",
    "runner twice": "a runner is started once more after {seconds:.0f} s, for the same attempt",
    "time out unheard": "the DAG run times out after {seconds:.0f} s, and no worker hears of it",
    "time out": "the DAG run times out after {seconds:.0f} s",
}


def tell(script: Script, *, everything: bool = False) -> str:
    """Simulate a script and return its story. With `everything`, all requests are in it."""
    ended = simulate(script, is_told=True)
    lines = [*describe(ended), "", *_events(ended, everything=everything)]
    lines += ["", ended.failure or "All invariants hold."]
    return "\n".join(lines)


def describe(ended: Ended) -> Iterator[str]:
    """Describe a script in plain words, and which parts of it did not happen."""
    script = ended.script
    server, *workers = script.clocks
    yield f"Seed {script.seed}."
    tail = f", and {script.tail:.0%} of them a hundred times as long" if script.tail else ""
    yield f"Sweep {script.sweep} on {script.kind}; requests take up to {script.pace:g} s{tail}."
    yield (
        f"Leases last {script.ttl_seconds:.0f} s; plan {'asks' if script.asks else 'does not ask'} "
        "Airflow about their holders."
    )
    if script.max_attempts is not None:
        yield f"A trial runs until {script.max_attempts} attempts have failed."
    if any(script.clocks):
        others = ", ".join(f"worker-{n} by {ahead:+.0f} s" for n, ahead in enumerate(workers))
        yield f"Clocks are wrong: the store by {server:+.0f} s, {others}."
    for number, night in enumerate(script.nights, 1):
        done = "; ".join(
            _describe_meddling(each, is_done=each not in ended.left_undone)
            for each in night.meddlings
        )
        yield f"Night {number} starts at {clock(night.starts)}{f': {done}' if done else ''}."
    for fault in script.faults:
        yield f"Fault at {fault}{_unless(fault in ended.struck)}."
    for storm in script.storms:
        yield f"From {clock(storm.begins)} for {storm.seconds:.0f} s the store refuses {storm.share:.0%}."
    for command in sorted(script.commands, key=lambda command: command.at):
        yield f"A person starts `{command.name}` at {clock(command.at)}."
    for loss in script.losses:
        yield f"worker-{loss.worker} is lost at {clock(loss.at)}."
    for life in script.drivers:
        begins = "is alive" if life.starts is None else f"is started at {clock(life.starts)}"
        yield f"The experiment's own driver {begins}, and is killed at {clock(life.ends)}."
    for jump in script.jumps:
        yield f"The clock of worker-{jump.worker} jumps by {jump.seconds:+.0f} s at {clock(jump.at)}."


def _describe_meddling(meddling: Meddling, *, is_done: bool) -> str:
    told = _MEDDLINGS[meddling.what].format(task=meddling.task, seconds=meddling.seconds)
    return told + _unless(is_done)


def _unless(has_happened: bool) -> str:  # noqa: FBT001  its only argument
    return "" if has_happened else " (this did not happen)"


def _events(ended: Ended, *, everything: bool) -> Iterator[str]:
    kept = [event for event in ended.story if everything or _matters(event[2])]
    width = max((len(who) for _, who, _ in kept), default=0)
    for at, who, what in kept:
        first, *others = what.splitlines() or [""]
        yield f"{clock(at):>13}  {who:{width}}  {first}"
        yield from (f"{'':13}  {'':{width}}  {line}" for line in others)


def _matters(what: str) -> bool:
    """Whether an event is told by default. A create that lost, and a write that failed, are."""
    if _SELDOM.match(what):
        return False
    request = _REQUEST.match(what)
    if request is None:
        return True
    return request[1] in ("put", "create", "delete") and request["result"] is not None


def clock(seconds: float) -> str:
    """Return a virtual time as h:mm:ss.sss."""
    minutes, rest = divmod(seconds, 60.0)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:06.3f}"
