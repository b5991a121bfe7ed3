"""Asks a Ray cluster that may be out of reach for a while, and whose token may change.

An outage does not end a job: what must reach the cluster is sent again and again, and each trouble is
logged once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from airflow_tune_restore.exceptions import InvalidInputError, RayClusterError, TuneRestoreError
from airflow_tune_restore.launch.ray.jobs_api import AsyncRayJobs, RayJob

if TYPE_CHECKING:
    from airflow_tune_restore.launch.log_lines import Log
    from airflow_tune_restore.launch.ray.cluster import Cluster

_T = TypeVar("_T")
_Found = dict[str, RayJob | TuneRestoreError | None]

MOST_FINDS = 16
"""More jobs than this are looked up with one list of all jobs, which others may have made long."""

REQUESTS_AT_ONCE = 8

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
"""Between two tries during an outage. The pause doubles up to the longest one."""


class PatientRayJobs:
    """The jobs of the cluster that a connection names now.

    Args:
        connect: Returns the cluster. It is called again when the cluster refuses the token.
    """

    def __init__(self, connect: "Callable[[], Cluster]", log: "Log") -> None:
        self._connect = connect
        self._log = log
        self._turns = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._api: AsyncRayJobs | None = None
        self._trouble = ""  # the last one that was logged

    def now(self) -> AsyncRayJobs:
        """Return the API of the cluster.

        Raises:
            InvalidInputError: If the connection cannot be used.
        """
        if self._api is None:
            self._api = AsyncRayJobs(self._connect())
        return self._api

    async def close(self) -> None:
        """Close the connection."""
        if self._api is not None:
            await self._api.close()

    async def ask_until_answered(
        self, job_id: str, ask: Callable[[AsyncRayJobs], Awaitable[_T]], is_off: Callable[[], bool]
    ) -> _T | None:
        """Return the answer about a job, however long it takes; None if nobody wants it now.

        Raises:
            InvalidInputError: If the cluster refuses, also with the connection of now.
        """
        pause = FIRST_PAUSE_SECONDS
        while not is_off():
            api = self._api
            try:
                async with self._turns:
                    if is_off():
                        break
                    api = self.now()
                    return await ask(api)
            except TuneRestoreError as error:
                if isinstance(error, InvalidInputError) and not await self._meet(error, api):
                    raise
                self.warn(error, f", for Ray job {job_id}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return None

    async def ask_once(self, ask: Callable[[AsyncRayJobs], Awaitable[object]]) -> None:
        """Ask what nobody needs.

        Raises:
            TuneRestoreError: If it was not done.
        """
        async with self._turns:
            await ask(self.now())

    async def look(self, job_ids: Sequence[str]) -> _Found:
        """Find jobs, as `find_all`, and log the trouble if one cannot be asked for."""
        api = self._api
        found = await self.find_all(job_ids)
        troubles = [job for job in found.values() if isinstance(job, TuneRestoreError)]
        if troubles:
            await self._meet(troubles[0], api)
        elif found:
            self._trouble = ""
        return found

    async def find_all(self, job_ids: Sequence[str]) -> _Found:
        """Return jobs by id: None for one that the cluster does not have, an error for an unknown one.

        One that is not found must be missing in the list, too: a proxy that has lost its cluster answers
        everything with 404.
        """
        if len(job_ids) <= MOST_FINDS:
            found = await self._find_each(job_ids)
            if None not in found.values():
                return found
        try:
            listed = {job.submission_id: job for job in await self.now().list_all()}
        except RayClusterError as error:  # the list may be too long: others keep jobs, too
            first = await self._find(job_ids[0])
            if not isinstance(first, TuneRestoreError):
                return await self._find_each(job_ids)
            return dict.fromkeys(job_ids, error)
        except TuneRestoreError as error:
            return dict.fromkeys(job_ids, error)
        return {job_id: listed.get(job_id) for job_id in job_ids}

    async def _find_each(self, job_ids: Sequence[str]) -> _Found:
        found: _Found = {}
        for begin in range(0, len(job_ids), REQUESTS_AT_ONCE):
            some = job_ids[begin : begin + REQUESTS_AT_ONCE]
            found |= zip(some, await asyncio.gather(*map(self._find, some)), strict=True)
        return found

    async def _find(self, job_id: str) -> RayJob | TuneRestoreError | None:
        try:
            return await self.now().find(job_id)
        except TuneRestoreError as error:
            return error

    async def _meet(self, error: TuneRestoreError, api: AsyncRayJobs | None) -> bool:
        """Log a trouble, and return whether the connection is another one than `api`, which had it.

        So a token can be replaced in the connection without a restart of the scheduler.
        """
        if api is None or not isinstance(error, InvalidInputError):
            self.warn(error)
            return False
        if api is not self._api:
            return True  # another request had the same trouble, and has connected anew
        self.warn(error)
        try:
            if self._connect() == api.cluster:
                return False
        except InvalidInputError as unusable:
            self.warn(unusable)
            return False
        self._api = None
        await api.close()
        return True

    def warn(self, error: TuneRestoreError, what: str = "") -> None:
        """Log a trouble once, until its text changes or the cluster answers."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            self._log.warning(
                "%s It is asked again%s; jobs that run are not affected.", error, what
            )
