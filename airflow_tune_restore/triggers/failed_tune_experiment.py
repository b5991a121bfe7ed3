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

from airflow_tune_restore.experiments.health import (
    DEFAULT_STALE_AFTER,
    RESTORABLE,
    ExperimentReport,
    Health,
)
from airflow_tune_restore.experiments.selection import MAX_DEPTH
from airflow_tune_restore.hooks.arguments import parse_health, parse_span
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.hooks.finding import say_why
from airflow_tune_restore.triggers.experiment_watch import ExperimentWatch

REPORTED_KEY = "reported"
"""In the state store of the asset: what was reported, by experiment. Read by tomorrow's triggerer."""

SETTLED_SECONDS = 10.0
"""After an event until it is remembered: Airflow stores events about once a second, and one that is
remembered but was never stored would be lost if the triggerer died between the two."""

_NAMED = 20

log = logging.getLogger(__name__)


class FailedTuneExperimentTrigger(ExperimentWatch):
    """Fires whenever experiments below a prefix have died or changed since they were last reported.

    For `AssetWatcher(name=…, trigger=FailedTuneExperimentTrigger(prefix=…))`. An event only wakes the DAG
    up, which scans by itself; it names a few experiments, as addresses that a hook can open. What is dead
    is reported once for each state it died with, across restarts of the triggerer; again if it has lived,
    or a restore was at work on it, in between. It never returns and never raises.

    Args:
        prefix: Where to look: a local path or a URL, as `s3://conn_id@bucket/path`.
        health: Which experiments to report.
        stale_after: Silence after which an unfinished experiment counts as dead; a timedelta or seconds.
        poke_interval: Seconds between two polls.
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
        poke_interval: float = 60.0,
        storage_conn_id: str | None = None,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        max_depth: int = MAX_DEPTH,
        use_index: bool = True,
        ray_conn_id: str | None = None,
        stale_after_seconds: float | None = None,
    ) -> None:
        if stale_after_seconds is None:
            stale_after_seconds = parse_span("stale_after", stale_after).total_seconds()
        if storage_conn_id:
            prefix = str(Address.parse(prefix, storage_conn_id=storage_conn_id))
        super().__init__(
            prefix=prefix,
            health=sorted(parse_health(health)),
            stale_after_seconds=stale_after_seconds,
            poke_interval=float(poke_interval),
            include=list(include or ()),
            exclude=list(exclude or ()),
            max_depth=max_depth,
            use_index=use_index,
            ray_conn_id=ray_conn_id,
        )

    async def filter_shared_stream(
        self, shared_stream: AsyncIterator[Any]
    ) -> AsyncIterator[TriggerEvent]:
        """Yield one event for each poll that shows something new, and remember it."""
        wanted = parse_health(self.health)
        reported = await self._recall()
        async for poll in shared_stream:
            if poll.refusal:
                log.error("%s is not watched: %s", self.prefix, poll.refusal)
                continue
            now = _marks(poll.reports, wanted, reported)
            new = [r for r in poll.reports if now.get(_key(r)) not in (None, reported.get(_key(r)))]
            if new:
                say_why(new, log)
                yield TriggerEvent(self._wake_up(new))
                await asyncio.sleep(SETTLED_SECONDS)
            if now != reported:
                await self._remember(now)
            reported = now

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

    async def _recall(self) -> dict[str, str]:
        """Return what was reported before this triggerer began, if the asset's memory can be read."""
        if self.asset_state_store is None:
            return {}
        try:
            found = await self.asset_state_store.aget(REPORTED_KEY, {})
        except Exception:  # noqa: BLE001  without memory it reports again, which a second scan bears
            log.exception("What was reported of %s before is not known.", self.prefix)
            return {}
        pairs = found.items() if isinstance(found, dict) else ()
        return {key: mark for key, mark in pairs if isinstance(mark, str)}

    async def _remember(self, reported: dict[str, str]) -> None:
        if self.asset_state_store is None:
            return
        try:
            await self.asset_state_store.aset(REPORTED_KEY, dict[str, JsonValue](reported))
        except Exception:  # noqa: BLE001  the same
            log.exception("What was reported of %s is not remembered.", self.prefix)


def _marks(
    reports: Iterable[ExperimentReport], wanted: frozenset[Health], reported: dict[str, str]
) -> dict[str, str]:
    """Return key -> mark of all that is dead now.

    Who cannot be read now, or not be seen because a directory above cannot, stays as he was reported.
    """
    by_key = {_key(report): report for report in reports}
    blind = any(report.health is Health.UNREADABLE for report in by_key.values())
    unclear = {
        key
        for key in reported
        if (by_key[key].health is Health.UNREADABLE if key in by_key else blind)
    }
    return {key: reported[key] for key in unclear} | {
        key: _digest(report.health, report.state_file, report.trials)
        for key, report in by_key.items()
        if report.health in wanted
    }


def _key(report: ExperimentReport) -> str:
    return _digest(report.experiment)


def _digest(*parts: Any) -> str:
    """Return few letters: Airflow warns of more than 64 KB in a state store."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
