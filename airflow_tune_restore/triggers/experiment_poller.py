"""Polls a prefix in the triggerer, once for all who wait for experiments below it.

Sensors that were deferred and watchers of assets share one poll if they ask for the same: Airflow runs
`open_shared_stream` once for all triggers of one `shared_stream_key` (3.3), whatever their class.
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
"""Between two polls, whatever a sensor's `poke_interval` says: 0 would poll without a pause."""

LONGEST_WAIT_SECONDS = 600.0
"""Between two polls of a store that keeps failing."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Poll:
    """What one poll brought.

    Args:
        reports: All experiments below the prefix.
        refusal: Why there can be none: the arguments, or the connection, cannot be used.
    """

    reports: tuple[ExperimentReport, ...] = ()
    refusal: str = ""


class ExperimentPoller(BaseEventTrigger):
    """What all triggers have in common that look for experiments. The arguments are a wire format.

    Args:
        prefix: Address of the prefix (`s3://conn_id@bucket/path`); holds no secret.
        health: Words of `Health` to look for.
        stale_after_seconds: Silence after which an unfinished experiment counts as dead.
        poke_interval: Seconds between two polls.
        include: Globs of experiments to report.
        exclude: Globs of directories to leave out.
        max_depth: Levels below the prefix.
        use_index: Remember in the prefix what was read.
        ray_conn_id: Cluster to ask whether a driver runs for what looks dead.
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
        """Return what must be equal for one poll to serve two triggers: all but what they look for."""
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
        """Poll for ever: a stream that ends or raises takes all who share it along.

        A store that fails is asked again, later and later. What cannot be used at all is said to all,
        and tried again: somebody may add the missing connection.
        """
        interval, failures = float(kwargs["poke_interval"]), 0
        while True:
            try:
                reports = await asyncio.to_thread(_look, kwargs)
            except InvalidInputError as error:
                failures += 1
                yield Poll(refusal=printable(str(error), 4000))
            except TuneRestoreError as error:
                failures += 1
                said = printable(str(error), 4000)
                log.warning("%s Looking again in %.0f s.", said, _wait(interval, failures))
            except Exception:  # noqa: BLE001  an event trigger that raises is started again every 2 s
                failures += 1
                log.exception("Looking again in %.0f s.", _wait(interval, failures))
            else:
                failures = 0
                yield Poll(tuple(reports))
            await asyncio.sleep(_wait(interval, failures))

    @property
    def search(self) -> Search:
        """Where to look."""
        return _search(self.serialize()[1])


def _look(kwargs: dict[str, Any]) -> list[ExperimentReport]:
    return survey(_search(kwargs), log)


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


def _wait(interval: float, failures: int) -> float:
    """Return how long to wait: the interval, twice as long after each failure in a row."""
    interval = max(interval, LEAST_WAIT_SECONDS)
    return max(interval, min(interval * 2.0 ** min(failures, 30), LONGEST_WAIT_SECONDS))
