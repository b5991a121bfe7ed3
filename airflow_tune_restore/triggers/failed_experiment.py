"""Wakes a DAG when sweeps below a prefix have died: the trigger of an `AssetWatcher`."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any, Unpack

from airflow.triggers.base import TriggerEvent
from pydantic import JsonValue

from airflow_tune_restore.arguments import parse_health
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import RESTORABLE, ExperimentReport, Health
from airflow_tune_restore.hooks.experiment_search import SearchOptions, log_evidence
from airflow_tune_restore.triggers.experiment_poller import ExperimentPoller

MAX_REMEMBERED = 2000
"""Number of experiments: so many marks take 64 KB, and Airflow warns of a larger value."""

RECALL_WAITS_SECONDS = (0.0, 1.0, 5.0, 25.0)
"""Pauses before each try to read what was reported before: without it, all is reported again."""

SETTLED_SECONDS = 10.0
"""Pause between an event and its mark: the triggerer may die before Airflow has stored the event."""

_NAMED = 20

log = logging.getLogger(__name__)


class FailedTuneExperimentTrigger(ExperimentPoller):
    """Fires whenever experiments below a prefix have died, or changed since they were last reported.

    For `AssetWatcher(name=…, trigger=FailedTuneExperimentTrigger(prefix=…))`. An event only starts the
    DAG, which scans by itself; it names a few experiments, as addresses that a hook can open. A dead
    experiment is reported once, also across restarts of the triggerer. It is reported again when it was
    written to since (a new state, a newer write), or when a restore of it has died. The trigger never
    returns and never raises.

    Marks of what was reported are stored with the asset. Two assets whose watchers have the same
    arguments share one trigger in Airflow (3.3.2), which then stores nothing: give them one asset.

    Args:
        prefix: A local path or a URL, such as `s3://conn_id@bucket/path`.
        health: Which experiments to report.
        poke_interval: Time between two polls; a timedelta or seconds.
        stale_after: Silence after which an unfinished experiment counts as dead; a timedelta or seconds.
        storage_conn_id: Airflow connection; by default the one in the prefix.
        include: Globs of experiments to report.
        exclude: Globs of directories to leave out.
        max_depth: Levels below the prefix.
        use_index: Cache in the prefix what was read.
        ray_conn_id: Connection of type `ray_jobs`: the cluster on which drivers are looked for.
        stale_after_seconds: The wire form of `stale_after`.
    """

    def __init__(
        self,
        prefix: str,
        *,
        health: Iterable[str] = RESTORABLE,
        poke_interval: timedelta | float = 60.0,
        stale_after_seconds: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> None:
        if "{{" in prefix:
            raise InvalidInputError(
                f"prefix={prefix!r}: Airflow does not render templates of a watcher."
            )
        super().__init__(
            prefix,
            health=health,
            poke_interval=poke_interval,
            stale_after_seconds=stale_after_seconds,
            **options,
        )

    async def filter_shared_stream(
        self, shared_stream: AsyncIterator[Any]
    ) -> AsyncIterator[TriggerEvent]:
        """Yield one event for each poll that found something new, and store its marks."""
        wanted = parse_health(self.health)
        reported = kept = await self._recall()
        async for poll in shared_stream:
            if poll.refusal:
                log.error("%s is not watched: %s", self.search.place, poll.refusal)
                continue
            # ten thousand take a while
            dead = await asyncio.to_thread(_mark_dead, poll.reports, wanted)
            new = [report for key, mark, report in dead if reported.get(key) != mark]
            if new:
                log_evidence(new, log)
                yield TriggerEvent(self._wake_up(new))
                await asyncio.sleep(SETTLED_SECONDS)
            reported = _add_marks(reported, {key: mark for key, mark, _ in dead})
            if reported != kept and await self._remember(reported):
                kept = reported

    def _wake_up(self, new: list[ExperimentReport]) -> dict[str, Any]:
        place = self.search.place
        return {
            "prefix": str(place),
            "count": len(new),
            "experiments": [str(place.at(report.experiment)) for report in new[:_NAMED]],
        }

    @property
    def _memory_key(self) -> str:
        """Key in the state store of the asset, which may have more than one watcher."""
        seen = self.search.selection
        sight = [str(self.search.place), self.health, seen.include, seen.exclude, seen.max_depth]
        return f"reported_{_digest(sight)}"

    async def _recall(self) -> dict[str, str]:
        """Return the marks that were stored before this triggerer started, if they can be read."""
        if self.asset_state_store is None:
            return {}
        for wait in RECALL_WAITS_SECONDS:
            await asyncio.sleep(wait)
            try:
                found = await self.asset_state_store.aget(self._memory_key, {})
            except Exception:  # noqa: BLE001  then all is reported again, and scanned again
                log.exception("Earlier reports of %s cannot be read.", self.search.place)
            else:
                pairs = found.items() if isinstance(found, dict) else ()
                return {key: mark for key, mark in pairs if isinstance(mark, str)}
        return {}

    async def _remember(self, reported: dict[str, str]) -> bool:
        """Store the marks; return False if that failed: it is tried again after the next poll."""
        if self.asset_state_store is None:
            return True
        try:
            await self.asset_state_store.aset(self._memory_key, dict[str, JsonValue](reported))
        except Exception:  # noqa: BLE001  the same
            log.exception("Reports of %s cannot be stored.", self.search.place)
            return False
        return True


def _mark_dead(
    reports: Iterable[ExperimentReport], wanted: frozenset[Health]
) -> list[tuple[str, str, ExperimentReport]]:
    """Return key, mark and report of each dead experiment. The mark changes when the experiment does."""
    marked = []
    for report in reports:
        if report.health in wanted:
            state = (report.health, report.state_file, report.trials, report.abandoned)
            mark = _digest(*state, str(report.last_write))
            marked.append((_digest(report.experiment), mark, report))
    return marked


def _add_marks(reported: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Return the marks to store. Those of experiments that are not dead now are kept while there is room.

    Such an experiment is not reported again if it comes back unchanged.
    """
    others = [(key, mark) for key, mark in reported.items() if key not in now]
    too_many = max(0, len(others) + len(now) - MAX_REMEMBERED)
    return {**dict(others[too_many:]), **now}


def _digest(*parts: Any) -> str:
    """Return a short digest: there may be thousands."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
