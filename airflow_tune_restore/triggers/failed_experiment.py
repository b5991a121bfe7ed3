"""Waits in the triggerer until there is an experiment to restore below a prefix."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.experiments.health import ExperimentReport, Health
from airflow_tune_restore.experiments.printable import printable
from airflow_tune_restore.hooks.arguments import parse_health
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook

FIRST_EVENT_SECONDS = 10.0
"""Airflow 3.3.2 fails tasks at random whose trigger fires sooner (seen: 4 of 40 at 3 s, 0 at 10 s)."""

LONGEST_WAIT_SECONDS = 600.0
"""Between two polls of a store that keeps failing."""

_SHOWN = 20


class FailedExperimentTrigger(BaseTrigger):
    """Fires once, with the list of all experiments found by one poll.

    A store that fails is asked again, later and later; the task's own timeout ends that. Class path and
    arguments are a wire format: a triggerer of tomorrow reads them.

    Args:
        prefix: Address of the prefix (`s3://conn_id@bucket/path`); holds no secret.
        health: Words of `Health` to look for.
        stale_after_seconds: Silence after which an unfinished experiment counts as dead.
        poke_interval: Seconds between two polls.
    """

    def __init__(
        self,
        prefix: str,
        health: list[str],
        stale_after_seconds: float,
        poke_interval: float,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.health = health
        self.stale_after_seconds = stale_after_seconds
        self.poke_interval = poke_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments."""
        return (
            "airflow_tune_restore.triggers.failed_experiment.FailedExperimentTrigger",
            {
                "prefix": self.prefix,
                "health": self.health,
                "stale_after_seconds": self.stale_after_seconds,
                "poke_interval": self.poke_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until something is found; the event is `{"experiments": […]}` or `{"error": text}`."""
        failures = 0
        await asyncio.sleep(max(FIRST_EVENT_SECONDS, self.poke_interval))
        while True:
            try:
                found = await asyncio.to_thread(self._look)
            except InvalidInputError as error:  # waiting cannot mend it
                yield TriggerEvent({"error": printable(str(error), 4000)})
                return
            except TuneRestoreError as error:
                failures += 1
                wait = min(self.poke_interval * 2**failures, LONGEST_WAIT_SECONDS)
                self.log.warning("%s Looking again in %.0f s.", error, wait)
                await asyncio.sleep(max(wait, self.poke_interval))
                continue
            failures = 0
            if found:
                yield TriggerEvent({"experiments": found})
                return
            await asyncio.sleep(self.poke_interval)

    def _look(self) -> list[dict[str, Any]]:
        return find_experiments(
            self.prefix,
            health=parse_health(self.health),
            stale_after=timedelta(seconds=self.stale_after_seconds),
            log=logging.getLogger(__name__),
        )


def find_experiments(
    prefix: str, *, health: Iterable[Health], stale_after: timedelta, log: logging.Logger
) -> list[dict[str, Any]]:
    """Scan a prefix once, say what is there, and return the experiments of the wanted health.

    Returns:
        Small items for XCom. `experiment` is an address that later tasks can open; none holds a secret.
    """
    hook = ExperimentStorageHook()
    place = hook.address(prefix)
    reports = hook.scan(place, stale_after=stale_after)
    _say(place, reports, log)
    wanted = frozenset(health)
    return [_item(place, report) for report in reports if report.health in wanted]


def _say(place: Address, reports: list[ExperimentReport], log: logging.Logger) -> None:
    """Log one line of counts, and why each unreadable experiment is left alone."""
    counts = Counter(report.health for report in reports)
    words = ", ".join(f"{counts[health]} {health}" for health in Health if counts[health])
    log.info("%s: %d experiments; %s", place, len(reports), words or "nothing found")
    unreadable = [report for report in reports if report.health is Health.UNREADABLE]
    for report in unreadable[:_SHOWN]:
        log.warning("%s is left alone: %s", report.experiment, printable(report.reason))
    if len(unreadable) > _SHOWN:
        log.warning("… and %d more that cannot be read.", len(unreadable) - _SHOWN)


def _item(place: Address, report: ExperimentReport) -> dict[str, Any]:
    return {
        "experiment": str(place.at(report.experiment)),
        "name": report.name,
        "health": report.health.value,
        "reason": printable(report.reason),
        "trials": report.trials,
        "samples_left": report.samples_left,
        "last_write": report.last_write.isoformat() if report.last_write else None,
    }
