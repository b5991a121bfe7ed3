"""Experiments that all processes of a test session share: whoever wants one first makes it."""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

Batch = tuple[str, ...]


class MadeOnce(Mapping[str, Path]):
    """Kind -> its directory; never write to one.

    Args:
        root: Directory that the processes share.
        batches: Kinds that are made together.
        make: Makes a batch below a directory; it has not been made before.
    """

    def __init__(
        self, root: Path, batches: Sequence[Batch], make: Callable[[Path, Batch], object]
    ) -> None:
        self._root = root
        self._batch_of = {kind: batch for batch in batches for kind in batch}
        self._make = make

    def __getitem__(self, kind: str) -> Path:
        batch = self._batch_of[kind]
        home = self._root / batch[0]
        home.mkdir(parents=True, exist_ok=True)
        with (home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (home / "made").exists():
                shutil.rmtree(home / "experiments", ignore_errors=True)  # of one that failed to
                self._make(home / "experiments", batch)
                (home / "made").touch()
        return home / "experiments" / kind

    def __contains__(self, kind: object) -> bool:
        """Whether it can be made; asking makes nothing."""
        return kind in self._batch_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch_of)

    def __len__(self) -> int:
        return len(self._batch_of)
