"""The wait for the start of a pod ends with the window of its restore."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from airflow.providers.cncf.kubernetes.utils.pod_manager import PodLaunchTimeoutException

from airflow_tune_restore.protocol import window


@asynccontextmanager
async def until(moment: datetime | None) -> AsyncIterator[None]:
    """End the block at a moment, None for never.

    Raises:
        PodLaunchTimeoutException: As the provider does after its own timeouts.
    """
    try:
        async with asyncio.timeout(window.seconds_until(moment, datetime.now(UTC))) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise PodLaunchTimeoutException("the window of its restore has ended") from error
