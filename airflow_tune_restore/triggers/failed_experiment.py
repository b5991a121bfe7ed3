"""Wakes a DAG when sweeps below a prefix have died: the trigger of an `AssetWatcher`."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any

from airflow.triggers.base import TriggerEvent
from pydantic import JsonValue

from airflow_tune_restore.arguments import parse_health, parse_span
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import (
    DEFAULT_STALE_AFTER,
    RESTORABLE,
    ExperimentReport,
    Health,
)
from airflow_tune_restore.experiments.scan_filter import MAX_DEPTH
from airflow_tune_restore.hooks.experiment_search import build_search, log_evidence
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.triggers.experiment_poller import ExperimentPoller

MAX_REMEMBERED = 2000
"""Experiments: what is remembered of so many takes 64 KB, of more than which Airflow warns."""

RECALL_WAITS_SECONDS = (0.0, 1.0, 5.0, 25.0)
"""Before each try to read what was reported before: without it, everything is reported again."""

SETTLED_SECONDS = 10.0
"""After an event until it is remembered: Airflow stores events about once a second, and one that is
remembered but was never stored would be lost if the triggerer died between the two."""

_NAMED = 20

log = logging.getLogger(__name__)


class FailedTuneExperimentTrigger(ExperimentPoller):
    """Fires whenever experiments below a prefix have died or changed since they were last reported.

    For `AssetWatcher(name=…, trigger=FailedTuneExperimentTrigger(prefix=…))`. An event only wakes the DAG
    up, which scans by itself; it names a few experiments, as addresses that a hook can open. What is dead
    is reported once, across restarts of the triggerer, and again when it has been written to since (a new
    state, a newer write) or a restore has died at work on it. It never returns and never raises.

    What was reported is remembered with the asset. A trigger that watches two assets with the very same
    arguments is one trigger to Airflow (3.3.2), which then keeps no memory: give them one asset.

    Args:
        prefix: Where to look: a local path or a URL, as `s3://conn_id@bucket/path`.
        health: Which experiments to report.
        stale_after: Silence after which an unfinished experiment counts as dead; a timedelta or seconds.
        poke_interval: Time between two polls; a timedelta or seconds.
        storage_conn_id: Airflow connection; by default the one in the prefix.
        include: Globs of experiments to report.
        exclude: Globs of directories to leave out.
        max_depth: Levels below the prefix.
        use_index: Remember in the prefix what was read.
        ray_conn_id: Connection `ray_jobs` of a cluster to ask whether a driver runs for what looks dead.
        stale_after_seconds: The wire form of `stale_after`.
    """

    def __init__(  # noqa: PLR0913  users see Airflow's names, the wire its own
        self,
        prefix: str,
        *,
        health: Iterable[str] = RESTORABLE,
        stale_after: timedelta | float = DEFAULT_STALE_AFTER,
        poke_interval: timedelta | float = 60.0,
        storage_conn_id: str | None = None,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        max_depth: int = MAX_DEPTH,
        use_index: bool = True,
        ray_conn_id: str | None = None,
        stale_after_seconds: float | None = None,
    ) -> None:
        if "{{" in prefix:
            raise InvalidInputError(f"prefix={prefix!r}: Airflow renders no template of a watcher.")
        search = build_search(
            prefix,
            storage_conn_id=storage_conn_id,
            stale_after=stale_after if stale_after_seconds is None else stale_after_seconds,
            include=include,
            exclude=exclude,
            max_depth=max_depth,
            use_index=use_index,
            ray_conn_id=ray_conn_id,
        )
        super().__init__(
            prefix=str(search.place),
            health=sorted(parse_health(health)),
            stale_after_seconds=search.stale_after.total_seconds(),
            poke_interval=parse_span("poke_interval", poke_interval).total_seconds(),
            include=list(search.selection.include),
            exclude=list(search.selection.exclude),
            max_depth=search.selection.max_depth,
            use_index=search.use_index,
            ray_conn_id=search.ray_conn_id,
        )

    async def filter_shared_stream(
        self, shared_stream: AsyncIterator[Any]
    ) -> AsyncIterator[TriggerEvent]:
        """Yield one event for each poll that shows something new, and remember it."""
        wanted = parse_health(self.health)
        reported = kept = await self._recall()
        async for poll in shared_stream:
            if poll.refusal:
                log.error("%s is not watched: %s", self.prefix, poll.refusal)
                continue
            # of ten thousand this takes a while
            dead = await asyncio.to_thread(_mark_dead, poll.reports, wanted)
            new = [report for key, mark, report in dead if reported.get(key) != mark]
            if new:
                log_evidence(new, log)
                yield TriggerEvent(self._wake_up(new))
                await asyncio.sleep(SETTLED_SECONDS)
            reported = _add_marks(reported, {key: mark for key, mark, _ in dead})
            if reported != kept and await self._remember(reported):
                kept = reported

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for this one alone, where nobody shares."""
        async for event in self.filter_shared_stream(self.open_shared_stream(self.serialize()[1])):
            yield event

    def _wake_up(self, new: list[ExperimentReport]) -> dict[str, Any]:
        place = Address.parse(self.prefix)
        return {
            "prefix": self.prefix,
            "count": len(new),
            "experiments": [str(place.at(report.experiment)) for report in new[:_NAMED]],
        }

    @property
    def _memory_key(self) -> str:
        """Key in the state store of the asset, which may have more than one watcher."""
        sight = (self.prefix, self.health, self.include, self.exclude, self.max_depth)
        return f"reported_{_digest(sight)}"

    async def _recall(self) -> dict[str, str]:
        """Return what was reported before this triggerer began, if the asset's memory can be read."""
        if self.asset_state_store is None:
            return {}
        for wait in RECALL_WAITS_SECONDS:
            await asyncio.sleep(wait)
            try:
                found = await self.asset_state_store.aget(self._memory_key, {})
            except Exception:  # noqa: BLE001  without memory it reports again, which a second scan bears
                log.exception("What was reported of %s before is not known.", self.prefix)
            else:
                pairs = found.items() if isinstance(found, dict) else ()
                return {key: mark for key, mark in pairs if isinstance(mark, str)}
        return {}

    async def _remember(self, reported: dict[str, str]) -> bool:
        """Say whether it is remembered; what is not is tried again at the next poll."""
        if self.asset_state_store is None:
            return True
        try:
            await self.asset_state_store.aset(self._memory_key, dict[str, JsonValue](reported))
        except Exception:  # noqa: BLE001  the same
            log.exception("What was reported of %s is not remembered.", self.prefix)
            return False
        return True


def _mark_dead(
    reports: Iterable[ExperimentReport], wanted: frozenset[Health]
) -> list[tuple[str, str, ExperimentReport]]:
    """Return key, mark and report of all that is dead now; a mark changes when it is written to."""
    return [
        (
            _digest(report.experiment),
            _digest(
                *(report.health, report.state_file, report.trials, report.abandoned),
                str(report.last_write),
            ),
            report,
        )
        for report in reports
        if report.health in wanted
    ]


def _add_marks(reported: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Return what is to be remembered.

    Also of who is not dead now: he may live, be away, be hidden by an outage or under repair, and is
    not reported again if he is found as he was. Of too many, the first of those are forgotten.
    """
    others = [(key, mark) for key, mark in reported.items() if key not in now]
    too_many = max(0, len(others) + len(now) - MAX_REMEMBERED)
    return {**dict(others[too_many:]), **now}


def _digest(*parts: Any) -> str:
    """Return few letters: there may be thousands."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
