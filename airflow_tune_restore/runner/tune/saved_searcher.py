"""Restores the saved state of a searcher lost with tuner.pkl into a searcher that the user names."""

import contextlib
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher, SearchGenerator

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol import layout, pickle_reader
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.runner.tune import searcher
from airflow_tune_restore.storage.base import ObjectStore

_WRAPPED = "name:"
"""The prefix of the states of wrappers in SearchGenerator.save_to_dir (2.60)."""

_OF_SEARCHERS = {"_metric", "_mode"}
"""Attributes of every Searcher: a saved dict with both is the `__dict__` of a searcher."""


class _Restored(SearchGenerator):  # type: ignore[misc]  # Ray is untyped
    """A restored searcher: its space, metric and mode come from the saved state."""

    def set_search_properties(self, *_args: Any, **_kwargs: Any) -> bool:
        """Keep the restored properties."""
        return True


def fit(store: ObjectStore, search: dict[str, Any], name: str) -> dict[str, Any]:
    """Check that a searcher can restore the newest saved state, and wrap it like the lost one.

    The check restores the state. The controller does so again (`SearchGenerator.restore_from_dir`, 2.60),
    with the same result.

    Args:
        store: Rooted at the experiment directory.
        search: Arguments of `tune.run`, with the searcher as `search_alg`.
        name: Its name in the user's arguments.

    Returns:
        The arguments with the fitted searcher; none if Ray's own searcher saved the state, because Ray
        makes this one itself.

    Raises:
        InvalidInputError: If another kind of searcher saved the state.
    """
    with _fetched(store) as (saved, generator_state):
        if generator_state is None:
            return {} if any(saved.iterdir()) else search
        refusal = _refusal(store, name)
        inner = _inner(search, refusal)
        try:
            state = cloudpickle.loads(generator_state.read_bytes())
        except Exception as error:  # a damaged pickle raises anything
            raise _unreadable(refusal, generator_state, error) from error
        wrapped = _wrap_as_saved(inner, state, refusal)
        base = searcher.innermost(wrapped)
        _check_attributes(base, _load_own(_own_state(saved, base, refusal)), refusal)
        fitted = _Restored(wrapped)
        try:
            fitted.restore_from_dir(saved.as_posix())
        except Exception as error:  # the user's searcher may raise anything
            why = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise InvalidInputError(
                f"{refusal} {type(base).__name__} failed to restore it with {why.rstrip('.')}. Name the "
                "searcher the experiment was made with, and import what it needs (imports, --import)."
            ) from error
    return {**search, "search_alg": fitted}


def check(store: ObjectStore, search: dict[str, Any], name: str) -> None:
    """Make the checks of `fit` that need no unpickling of the saved state; same arguments and errors."""
    with _fetched(store) as (saved, generator_state):
        if generator_state is None:
            return
        refusal = _refusal(store, name)
        inner = _inner(search, refusal)
        try:
            state = _read_keys(generator_state)
        except pickle_reader.DamagedPickleError as error:
            raise _unreadable(refusal, generator_state, error) from error
        if state is not None:
            _check_wrappers(inner, state, refusal)
        base = searcher.innermost(inner)
        own = _own_state(saved, base, refusal)
        # a searcher may save in any format
        with contextlib.suppress(pickle_reader.DamagedPickleError):
            _check_attributes(base, _read_keys(own) or (), refusal)


@contextlib.contextmanager
def _fetched(store: ObjectStore) -> Iterator[tuple[Path, Path | None]]:
    """Fetch the newest saved files; yield their directory, and in it the state of a SearchGenerator."""
    with tempfile.TemporaryDirectory(prefix="tune-restore-searcher-") as directory:
        saved = Path(directory)
        searcher.fetch_newest(store, saved)
        yield saved, _newest(saved, f"{layout.SEARCH_STATE_PREFIX}*")


def _read_keys(file: Path) -> list[str] | None:
    """Return the keys of a saved dict, read symbolically; None if they cannot be read.

    A file that is not a whole pickle is a DamagedPickleError.
    """
    try:
        state = pickle_reader.read_pickle(file.read_bytes())
    except pickle_reader.DamagedPickleError:
        raise
    except pickle_reader.SymbolicError:
        return None
    if not isinstance(state, pickle_reader.Mapping):
        return None
    return [key for key, _ in state.pairs if isinstance(key, str)]


def _load_own(file: Path) -> Collection[str]:
    """Return the keys of the dict that a searcher saved; none if it saved something else."""
    try:
        saved = cloudpickle.loads(file.read_bytes())
    except Exception:  # noqa: BLE001  the restore that follows shows the error
        return ()
    return saved.keys() if isinstance(saved, dict) else ()


def _inner(search: dict[str, Any], refusal: str) -> Searcher:
    search_alg = search["search_alg"]
    inner = search_alg.searcher if isinstance(search_alg, SearchGenerator) else search_alg
    if not isinstance(inner, Searcher):
        raise InvalidInputError(f"{refusal} a {type(inner).__name__} is not a Searcher.")
    return inner


def _own_state(saved: Path, base: Searcher, refusal: str) -> Path:
    own = _newest(saved, base.CKPT_FILE_TMPL.format("*"))
    if own is None:
        raise InvalidInputError(
            f"{refusal} the state of the saved one is missing. Restore without search_alg: then the "
            "trials are restored, and the samples that are left are not."
        )
    return own


def _refusal(store: ObjectStore, name: str) -> str:
    return f"search_alg {name} does not fit the saved searcher of {store.uri}:"


def _unreadable(refusal: str, file: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"{refusal} {file.name} cannot be read: {type(error).__name__}: {str(error).rstrip('.')}."
    )


def _newest(directory: Path, pattern: str) -> Path | None:
    return max(directory.glob(pattern), default=None)


def _check_wrappers(inner: Searcher, state: Iterable[str], refusal: str) -> list[str]:
    """Return the wrappers that a bare searcher needs; a wrapped one must have the saved wrappers."""
    saved = [key.removeprefix(_WRAPPED) for key in state if key.startswith(_WRAPPED)]
    given = searcher.wrappers(inner)
    if given == saved:
        return []
    if not given and set(saved) <= set(_WRAP):
        return saved
    raise InvalidInputError(
        f"{refusal} the saved one has the wrapper {' and '.join(saved) or 'None'}, and this one has "
        f"{' and '.join(given) or 'None'}. Use the same wrappers."
    )


def _wrap_as_saved(inner: Searcher, state: dict[str, Any], refusal: str) -> Searcher:
    for kind in reversed(_check_wrappers(inner, state, refusal)):
        inner = _WRAP[kind](inner, state[_WRAPPED + kind])
    return inner


_WRAP = {
    "ConcurrencyLimiter": lambda inner, state: ConcurrencyLimiter(
        inner, max_concurrent=state["max_concurrent"], batch=state["batch"]
    ),
    "Repeater": lambda inner, state: Repeater(
        inner, repeat=state["repeat"], set_index=state["_set_index"]
    ),
}


def _check_attributes(base: Searcher, saved: Collection[str], refusal: str) -> None:
    """Refuse the attributes of another class; another version only adds attributes, or lacks some."""
    if not set(saved) >= _OF_SEARCHERS:
        return
    missing, foreign = vars(base).keys() - set(saved), set(saved) - vars(base).keys()
    if missing and foreign:
        raise InvalidInputError(
            f"{refusal} it was saved by another class than {type(base).__name__} (it has "
            f"{printable(min(foreign), 60)}, and lacks {min(missing)}). Name the searcher the "
            "experiment was made with."
        )
