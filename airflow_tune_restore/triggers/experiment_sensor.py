"""Waits in the triggerer, for a deferred sensor, until there is an experiment to restore."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import TriggerEvent

from airflow_tune_restore.arguments import parse_health
from airflow_tune_restore.hooks.experiment_search import (
    build_items,
    build_left_alone,
    fit_items,
    log_evidence,
)
from airflow_tune_restore.triggers.experiment_poller import ExperimentPoller
from airflow_tune_restore.triggers.first_event import FIRST_EVENT_SECONDS

log = logging.getLogger(__name__)


class ExperimentSensorTrigger(ExperimentPoller):
    """Fires once, with the list of all experiments found by one poll; waits until the task's timeout."""

    async def filter_shared_stream(
        self, shared_stream: AsyncIterator[Any]
    ) -> AsyncIterator[TriggerEvent]:
        """Wait for the first poll that found some: the event has them, or an error."""
        wanted = parse_health(self.health)
        not_before = asyncio.get_running_loop().time() + FIRST_EVENT_SECONDS
        async for poll in shared_stream:
            found = [report for report in poll.reports if report.health in wanted]
            if not found and not poll.refusal:
                continue
            await asyncio.sleep(not_before - asyncio.get_running_loop().time())
            if poll.refusal:  # waiting does not help
                yield TriggerEvent({"error": poll.refusal})
                return
            log_evidence(found, log)
            items = fit_items(build_items(self.search.place, poll.reports, wanted), log)
            left_alone = build_left_alone(self.search.place, poll.reports, wanted)
            yield TriggerEvent({"experiments": items, "left_alone": left_alone})
            return
