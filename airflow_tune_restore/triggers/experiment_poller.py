"""Polls a prefix in the triggerer, once for all triggers that wait for experiments below it.

Deferred sensors and watchers of assets share one poll if they search for the same: Airflow runs
`open_shared_stream` once for all triggers with the same `shared_stream_key` (3.3), whatever their class.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Unpack

from airflow.triggers.base import TriggerEvent

from airflow_tune_restore.arguments import parse_health, parse_span
from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.experiments.health import ExperimentReport
from airflow_tune_restore.hooks.experiment_search import SearchOptions, build_search, survey
from airflow_tune_restore.hooks.experiment_storage import share_hook
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.version_compat import EventTrigger, in_thread

LEAST_WAIT_SECONDS = 1.0
"""Shortest pause between two polls: a `poke_interval` of 0 would poll without a pause."""

LONGEST_WAIT_SECONDS = 600.0
"""Longest pause between two polls of a store that keeps failing."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Poll:
    """All experiments below the prefix; or why the arguments or the connection cannot be used."""

    reports: tuple[ExperimentReport, ...] = ()
    refusal: str = ""


class ExperimentPoller(EventTrigger):
    """Base of triggers that wait for experiments; see `FailedTuneExperimentTrigger` for the arguments."""

    def __init__(
        self,
        prefix: str,
        *,
        health: Iterable[str],
        poke_interval: timedelta | float,
        stale_after_seconds: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> None:
        super().__init__()
        if stale_after_seconds is not None:
            options["stale_after"] = stale_after_seconds
        self.search = build_search(prefix, **options)
        self.health = sorted(parse_health(health))
        self.poke_interval = parse_span("poke_interval", poke_interval).total_seconds()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments: a wire format, which a newer triggerer may read."""
        own = {"health": self.health, "poke_interval": self.poke_interval}
        return f"{type(self).__module__}.{type(self).__qualname__}", self.search.arguments() | own

    def shared_stream_key(self) -> Hashable:
        """Return what two triggers must have in common to share a poll: all but `health`."""
        return "tune experiments", self.search, self.poke_interval

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for this trigger alone, where no stream is shared: `dag.test()`, Airflow before 3.3."""
        async for event in self.filter_shared_stream(self.open_shared_stream(self.serialize()[1])):
            yield event

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncIterator[Poll]:
        """Poll forever: if the stream ended or raised, so would all triggers that share it.

        A store that fails is polled again, after longer and longer pauses. So is a refusal, which all
        triggers receive: a user may add the missing connection.
        """
        interval, failures = float(kwargs["poke_interval"]), 0
        warns_if_empty = True  # once, and not at every poll
        hook = share_hook()
        while True:
            failures += 1
            try:
                search = cls(**kwargs).search
                reports = await in_thread(survey, hook, search, log, None, warns_if_empty)
            except InvalidInputError as error:
                yield Poll(refusal=printable(str(error), 4000))
            except TuneRestoreError as error:
                shown = printable(str(error), 4000)
                log.warning("%s Polling again in %.0f s.", shown, _pause(interval, failures))
            except Exception:  # noqa: BLE001  an event trigger that raises is started again every 2 s
                log.exception("Polling again in %.0f s.", _pause(interval, failures))
            else:
                failures = 0
                warns_if_empty = bool(reports)
                yield Poll(tuple(reports))
            await asyncio.sleep(_pause(interval, failures))
            hook.reconnect()  # the connection may have changed


def _pause(interval: float, failures: int) -> float:
    """Return the pause before the next poll: twice as long after each failure in a row."""
    interval = max(interval, LEAST_WAIT_SECONDS)
    return max(interval, min(interval * 2.0 ** min(failures, 30), LONGEST_WAIT_SECONDS))
