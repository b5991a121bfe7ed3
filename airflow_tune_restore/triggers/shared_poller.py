"""Polls one place for all triggers of a triggerer that wait for something there."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar


@dataclass(eq=False, kw_only=True)
class Watch:
    """The subject of one waiting trigger; a poller fills it in."""

    broken: Exception | None = None  # unexpected; it ended the polling for this trigger
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # the trigger clears it


W = TypeVar("W", bound=Watch)


class SharedPoller(ABC, Generic[W]):
    """One background task per place and event loop; it lives as long as there is a watch."""

    _all: ClassVar[dict[tuple[Hashable, ...], "SharedPoller[Any]"]] = {}

    def __init__(self, *place: Hashable) -> None:
        self._watches: set[W] = set()
        name = f"{type(self).__name__} {' '.join(map(str, place))}"
        self._task = asyncio.create_task(self._run(), name=name)

    @classmethod
    @asynccontextmanager
    async def watch(cls, watch: W, *place: Hashable) -> AsyncIterator[W]:
        """Have a watch filled in until the block ends. The poller's arguments also identify it."""
        key = (cls, id(asyncio.get_running_loop()), *place)
        poller = cls._all.get(key)
        if poller is None or poller._task.done():
            poller = cls._all[key] = cls(*place)
        poller._watches.add(watch)
        try:
            yield watch
        finally:
            poller._watches.discard(watch)
            if not poller._watches and cls._all.get(key) is poller:
                del cls._all[key]
                poller._task.cancel()

    @abstractmethod
    async def _poll(self) -> None:
        """Poll forever."""

    async def _run(self) -> None:
        try:
            await self._poll()
        except Exception as error:
            for watch in list(self._watches):  # or their triggers would wait forever
                watch.broken = error
                watch.changed.set()
            raise
