"""Polls a prefix in the triggerer, once for all triggers that wait for experiments below it.

Deferred sensors and watchers of assets share one poll if they search for the same: Airflow runs
`open_shared_stream` once for all triggers with the same `shared_stream_key` (3.3), whatever their class.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass
from typing import Any

from airflow.triggers.base import BaseEventTrigger

from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.experiments.health import ExperimentReport
from airflow_tune_restore.experiments.scan_filter import MAX_DEPTH
from airflow_tune_restore.hooks.experiment_search import Search, build_search, survey
from airflow_tune_restore.protocol.printable import printable

LEAST_WAIT_SECONDS = 1.0
"""Shortest pause between two polls: a `poke_interval` of 0 would poll without a pause."""

LONGEST_WAIT_SECONDS = 600.0
"""Longest pause between two polls of a store that keeps failing."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Poll:
    """The result of one poll.

    Args:
        reports: All experiments below the prefix.
        refusal: Why the arguments or the connection cannot be used; "" if they can.
    """

    reports: tuple[ExperimentReport, ...] = ()
    refusal: str = ""


class ExperimentPoller(BaseEventTrigger):
    """Base of triggers that wait for experiments. The arguments are a wire format.

    Args:
        prefix: Address of the prefix (`s3://conn_id@bucket/path`); holds no secret.
        health: Values of `Health` to wait for.
        stale_after_seconds: Silence after which an unfinished experiment counts as dead.
        poke_interval: Seconds between two polls.
        include: Globs of experiments to report.
        exclude: Globs of directories to leave out.
        max_depth: Levels below the prefix.
        use_index: Cache in the prefix what was read.
        ray_conn_id: Ray cluster on which the drivers of dead experiments are looked for.
    """

    def __init__(  # noqa: PLR0913  a wire format has its fields by name
        self,
        prefix: str,
        health: list[str],
        stale_after_seconds: float,
        poke_interval: float,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        max_depth: int = MAX_DEPTH,
        use_index: bool = True,  # noqa: FBT001, FBT002
        ray_conn_id: str | None = None,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.health = health
        self.stale_after_seconds = stale_after_seconds
        self.poke_interval = poke_interval
        self.include = include or []
        self.exclude = exclude or []
        self.max_depth = max_depth
        self.use_index = use_index
        self.ray_conn_id = ray_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "prefix": self.prefix,
                "health": self.health,
                "stale_after_seconds": self.stale_after_seconds,
                "poke_interval": self.poke_interval,
                "include": self.include,
                "exclude": self.exclude,
                "max_depth": self.max_depth,
                "use_index": self.use_index,
                "ray_conn_id": self.ray_conn_id,
            },
        )

    def shared_stream_key(self) -> Hashable:
        """Return what two triggers must have in common to share a poll: all but `health`."""
        return (
            "tune experiments",
            self.prefix,
            self.stale_after_seconds,
            self.poke_interval,
            tuple(self.include),
            tuple(self.exclude),
            self.max_depth,
            self.use_index,
            self.ray_conn_id,
        )

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncIterator[Poll]:
        """Poll forever: if the stream ended or raised, so would all triggers that share it.

        A store that fails is polled again, after longer and longer pauses. So is a refusal, which all
        triggers receive: a user may add the missing connection.
        """
        interval, failures = float(kwargs["poke_interval"]), 0
        while True:
            try:
                reports = await asyncio.to_thread(survey, _search(kwargs), log)
            except InvalidInputError as error:
                failures += 1
                yield Poll(refusal=printable(str(error), 4000))
            except TuneRestoreError as error:
                failures += 1
                shown = printable(str(error), 4000)
                log.warning("%s Polling again in %.0f s.", shown, _pause(interval, failures))
            except Exception:  # noqa: BLE001  an event trigger that raises is started again every 2 s
                failures += 1
                log.exception("Polling again in %.0f s.", _pause(interval, failures))
            else:
                failures = 0
                yield Poll(tuple(reports))
            await asyncio.sleep(_pause(interval, failures))

    @property
    def search(self) -> Search:
        """The search that it polls."""
        return _search(self.serialize()[1])


def _search(kwargs: dict[str, Any]) -> Search:
    return build_search(
        kwargs["prefix"],
        stale_after=kwargs["stale_after_seconds"],
        include=kwargs["include"],
        exclude=kwargs["exclude"],
        max_depth=kwargs["max_depth"],
        use_index=kwargs["use_index"],
        ray_conn_id=kwargs["ray_conn_id"],
    )


def _pause(interval: float, failures: int) -> float:
    """Return the pause before the next poll: twice as long after each failure in a row."""
    interval = max(interval, LEAST_WAIT_SECONDS)
    return max(interval, min(interval * 2.0 ** min(failures, 30), LONGEST_WAIT_SECONDS))
