"""One search of a prefix, which sensor and triggers do at every poll, and its log lines."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict

from airflow_tune_restore.arguments import parse_depth, parse_globs, parse_span
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER, ExperimentReport, Health
from airflow_tune_restore.experiments.scan_filter import MAX_DEPTH, ScanFilter
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.hooks.ray_jobs import driver_jobs
from airflow_tune_restore.hooks.xcom_size import first_fitting, fits, most_fitting, pack
from airflow_tune_restore.protocol.lease_objects import AskHolder
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.storage.location import LOCAL_SCHEMES, Location, at_home, explain_percent

LEFT_ALONE_KEY = "left_alone"
"""XCom key of the sensor: experiments below the prefix that it did not return, and why."""

MAX_LEFT_ALONE = 100
"""Experiments that an XCom names although they were not returned. The log counts all of them."""

_LEFT_ALONE = ("experiment", "health", "reason")
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
            include=parse_globs("include", include),
            exclude=parse_globs("exclude", exclude),
            max_depth=parse_depth("max_depth", max_depth),
        ),
        use_index=use_index,
        ray_conn_id=ray_conn_id,
    )


def survey(
    hook: ExperimentStorageHook,
    search: Search,
    log: logging.Logger,
    ask_holder: AskHolder | None = None,
    warns_if_empty: bool = True,  # noqa: FBT001, FBT002  a thread passes it by position
) -> list[ExperimentReport]:
    """Scan the prefix once, and log how many experiments of each health there are.

    `ask_holder` returns whether a restore that looks alive is known to have ended. The triggerer cannot
    ask (None). With `warns_if_empty`, a prefix without any experiment is a warning.
    """
    reports = hook.scan(
        search.place,
        stale_after=search.stale_after,
        selection=search.selection,
        use_index=search.use_index,
        ask_driver=driver_jobs(search.ray_conn_id),
        ask_holder=ask_holder,
    )
    if reports or not warns_if_empty:
        _log_counts(search.place, reports, log)
    else:
        log.warning("%s", _describe_empty(search))
    return reports


def build_items(
    place: Address, reports: Sequence[ExperimentReport], wanted: frozenset[Health]
) -> list[dict[str, Any]]:
    """Return the XCom items of the wanted experiments: `experiment` is an address without secrets.

    `shares_prefix` is whether experiments in other directories are below the prefix, too. They may belong
    to other people, who use the same name for another trainable.
    """
    is_shared = len({Location.parse(report.experiment).parent for report in reports}) > 1
    found = [report for report in reports if report.health in wanted]
    return [{**_build_item(place, report), "shares_prefix": is_shared} for report in found]


def _build_item(place: Address, report: ExperimentReport) -> dict[str, Any]:
    return {
        "experiment": str(place.at(report.experiment)),
        "name": report.name,
        "health": report.health.value,
        "reason": report.reason,
        "trials": report.trials,
        "samples_left": report.samples_left,
        "last_write": report.last_write.isoformat() if report.last_write else None,
    }


def fit_items(items: list[dict[str, Any]], log: logging.Logger) -> Any:
    """Return the items as they are while they fit into an XCom, else their addresses alone, packed.

    The log counts those that do not fit even so.
    """
    if fits(items):
        return items
    # what is the same for all of them is in the first one
    first = {name: items[0].get(name) for name in ("experiment", "shares_prefix")}
    addresses = [first, *(item["experiment"] for item in items[1:])]
    count = most_fitting(len(addresses), lambda number: pack(addresses[:number]))
    if count < len(items):
        log.warning(
            "%d of %s fit into an XCom and are returned. Another DAG run finds the others.",
            *(count, counted(len(items), "experiment")),
        )
    return pack(addresses[:count])


def build_left_alone(
    place: Address, reports: Iterable[ExperimentReport], wanted: frozenset[Health]
) -> dict[str, Any]:
    """Return the XCom form of the experiments that are not returned, and why: all but finished ones.

    The keys are `experiments`, at most `MAX_LEFT_ALONE` of them and as many as fit into an XCom, and
    `not_listed`, the number of others. Running ones are the last.
    """
    others = [r for r in reports if r.health not in wanted and r.health is not Health.FINISHED]
    others.sort(key=lambda report: report.health is Health.RUNNING)
    items = (
        {
            "experiment": str(place.at(report.experiment)),
            "health": report.health.value,
            "reason": report.reason,
        }
        for report in others[:MAX_LEFT_ALONE]
    )
    without = {"experiments": [], "not_listed": len(others)}
    shown = first_fitting(items, beside=len(json.dumps(without)))
    return {"experiments": shown, "not_listed": len(others) - len(shown)}


def log_left_alone(left_alone: Mapping[str, Any], log: logging.Logger) -> None:
    """Log which experiments are not returned, and why. Each search logs unreadable ones by itself."""
    for item in left_alone["experiments"]:
        if item["health"] != Health.UNREADABLE:
            log.info("%s is left alone: it is %s: %s", *(item[key] for key in _LEFT_ALONE))
    if left_alone["not_listed"]:
        log.info("… and %d more that are left alone.", left_alone["not_listed"])


def log_evidence(reports: list[ExperimentReport], log: logging.Logger) -> None:
    """Log the evidence for each verdict."""
    for report in reports[:_SHOWN]:
        log.info("%s is %s: %s", report.experiment, report.health.value, report.reason)
        for row in report.evidence:
            indicates = f"  [{row.indicates}]" if row.indicates else ""
            log.info("    %s: %s%s", row.name, row.found, indicates)
    if len(reports) > _SHOWN:
        log.info("… and %d more.", len(reports) - _SHOWN)


def log_found(addresses: Sequence[str], log: logging.Logger) -> None:
    """Log the addresses of the experiments that were found."""
    more = f" and {len(addresses) - _SHOWN} more" if len(addresses) > _SHOWN else ""
    log.info("Found: %s%s", ", ".join(addresses[:_SHOWN]), more)


def _describe_empty(search: Search) -> str:
    """Return what to check if nothing was found: below a prefix of sweeps there are finished ones."""
    location = Location.parse(search.place.uri)
    is_missing = location.scheme in LOCAL_SCHEMES and not at_home(location.place).exists()
    found = "no Tune experiment is there, not even a finished one"
    if is_missing:
        found = "this directory does not exist here"
    selection = search.selection
    checks = ["the spelling of the prefix"]
    if location.scheme not in LOCAL_SCHEMES:
        who = f"connection {search.place.conn_id!r}" if search.place.conn_id else "the environment"
        checks.append(f"whether the credentials of {who} may list it")
    elif is_missing:
        checks.append("whether this worker or triggerer has that disk")
    checks.append(f"max_depth ({counted(selection.max_depth, 'level')} below the prefix)")
    if selection.include or selection.exclude:
        checks.append("include and exclude")
    text = ", ".join(checks[:-1]) + f" and {checks[-1]}"
    hint = explain_percent(search.place.uri)
    return f"{search.place}: {found}{hint}. Check {text}."


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
