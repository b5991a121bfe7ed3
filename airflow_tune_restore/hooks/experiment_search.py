"""One search of a prefix, which sensor and triggers do at every poll, and its log lines."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict

from airflow_tune_restore.arguments import parse_span
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER, ExperimentReport, Health
from airflow_tune_restore.experiments.scan_filter import MAX_DEPTH, ScanFilter
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.hooks.ray_jobs import driver_jobs
from airflow_tune_restore.protocol.lease_objects import AskHolder
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.storage.location import explain_percent

_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The arguments of a search, as `FailedTuneExperimentSensor` explains them; `place` is the prefix."""

    place: Address
    stale_after: timedelta
    selection: ScanFilter
    use_index: bool = True
    ray_conn_id: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a trigger that does this search: a wire format, without secrets."""
        return {
            "prefix": str(self.place),
            "stale_after_seconds": self.stale_after.total_seconds(),
            "include": list(self.selection.include),
            "exclude": list(self.selection.exclude),
            "max_depth": self.selection.max_depth,
            "use_index": self.use_index,
            "ray_conn_id": self.ray_conn_id,
        }


class SearchOptions(TypedDict, total=False):
    """The optional arguments of `build_search`, for triggers."""

    storage_conn_id: str | None
    stale_after: timedelta | float
    include: Iterable[str] | None
    exclude: Iterable[str] | None
    max_depth: int
    use_index: bool
    ray_conn_id: str | None


def build_search(
    prefix: Any,
    *,
    storage_conn_id: str | None = None,
    stale_after: Any = DEFAULT_STALE_AFTER,
    include: Any = (),
    exclude: Any = (),
    max_depth: Any = MAX_DEPTH,
    use_index: bool = True,
    ray_conn_id: str | None = None,
) -> Search:
    """Read the arguments of a sensor or trigger.

    Raises:
        InvalidInputError: If one of them is not valid.
    """
    place = Address.parse(prefix, storage_conn_id=storage_conn_id)
    if prefix != prefix.strip():  # a typing mistake: nothing would ever be found
        raise InvalidInputError(f"prefix={prefix!r} begins or ends with a space.")
    return Search(
        place=place,
        stale_after=parse_span("stale_after", stale_after),
        selection=ScanFilter(
            include=_globs("include", include),
            exclude=_globs("exclude", exclude),
            max_depth=_depth(max_depth),
        ),
        use_index=use_index,
        ray_conn_id=ray_conn_id,
    )


def survey(
    search: Search, log: logging.Logger, ask_holder: AskHolder | None = None
) -> list[ExperimentReport]:
    """Scan the prefix once, and log how many experiments of each health there are.

    `ask_holder` returns whether a restore that looks alive is known to have ended. The triggerer cannot
    ask (None).
    """
    reports = ExperimentStorageHook().scan(
        search.place,
        stale_after=search.stale_after,
        selection=search.selection,
        use_index=search.use_index,
        ask_driver=driver_jobs(search.ray_conn_id),
        ask_holder=ask_holder,
    )
    _log_counts(search.place, reports, log)
    return reports


def build_item(place: Address, report: ExperimentReport) -> dict[str, Any]:
    """Return the XCom item of an experiment: its `experiment` is an address without secrets."""
    return {
        "experiment": str(place.at(report.experiment)),
        "name": report.name,
        "health": report.health.value,
        "reason": report.reason,
        "trials": report.trials,
        "samples_left": report.samples_left,
        "last_write": report.last_write.isoformat() if report.last_write else None,
    }


def log_evidence(reports: list[ExperimentReport], log: logging.Logger) -> None:
    """Log the evidence for each verdict."""
    for report in reports[:_SHOWN]:
        log.info("%s is %s: %s", report.experiment, report.health.value, report.reason)
        for row in report.evidence:
            indicates = f"  [{row.indicates}]" if row.indicates else ""
            log.info("    %s: %s%s", row.name, row.found, indicates)
    if len(reports) > _SHOWN:
        log.info("… and %d more.", len(reports) - _SHOWN)


def log_found(items: list[dict[str, Any]], log: logging.Logger) -> None:
    """Log the addresses of the experiments that were found."""
    named = [item["experiment"] for item in items[:_SHOWN]]
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    log.info("Found: %s%s", ", ".join(named), more)


def _log_counts(place: Address, reports: list[ExperimentReport], log: logging.Logger) -> None:
    counts = Counter(report.health for report in reports)
    words = ", ".join(f"{counts[health]} {health}" for health in Health if counts[health])
    found = words or f"nothing found{explain_percent(place.uri)}"
    log.info("%s: %s; %s", place, counted(len(reports), "experiment"), found)
    unreadable = [report for report in reports if report.health is Health.UNREADABLE]
    for report in unreadable[:_SHOWN]:
        log.warning("%s is left alone: %s", report.experiment, report.reason)
    if len(unreadable) > _SHOWN:
        log.warning("… and %d more that cannot be read.", len(unreadable) - _SHOWN)


def _globs(name: str, value: Any) -> tuple[str, ...]:
    patterns = [value] if isinstance(value, str) else list(value or ())
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidInputError(f"{name}={value!r} holds a value that is not a pattern.")
    return tuple(pattern for pattern in patterns if pattern.strip())


def _depth(value: Any) -> int:
    try:
        depth = int(value)
    except (TypeError, ValueError):
        raise InvalidInputError(f"max_depth={value!r} is not a whole number.") from None
    if depth < 0:
        raise InvalidInputError(f"max_depth={value!r} is less than zero.")
    return depth
