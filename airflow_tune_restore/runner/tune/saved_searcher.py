"""A searcher that the user names takes on the saved state of the one that was lost with tuner.pkl."""

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
"""How SearchGenerator.save_to_dir marks the states of what is around a searcher (2.60)."""

_OF_SEARCHERS = {"_metric", "_mode"}
"""What every Searcher has: a saved dict that holds both is the `__dict__` of one."""


class _Restored(SearchGenerator):  # type: ignore[misc]  # Ray is untyped
    """Its space, metric and mode come with the saved state, and are not set again."""

    def set_search_properties(self, *_args: Any, **_kwargs: Any) -> bool:
        """Leave them as they are."""
        return True


def fit(store: ObjectStore, search: dict[str, Any], name: str) -> dict[str, Any]:
    """Check that a searcher can take on the newest saved state, and wrap it as the lost one was wrapped.

    The state is tried on it. The controller restores it once more (`SearchGenerator.restore_from_dir`,
    2.60); restoring sets, and adds to nothing.

    Args:
        store: Rooted at the experiment directory.
        search: Arguments of `tune.run`, with the searcher as `search_alg`.
        name: How the user calls it.

    Returns:
        The arguments with the fitted searcher; none if Ray's own searcher has saved the state, which Ray
        makes by itself.

    Raises:
        InvalidInputError: If another kind of searcher has saved the state.
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
    """Refuse what `fit` refuses, as far as that shows without loading the saved state.

    Args:
        store: Rooted at the experiment directory.
        search: Arguments of `tune.run`, with the searcher as `search_alg`.
        name: How the user calls it.

    Raises:
        InvalidInputError: If another kind of searcher has saved the state.
    """
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
        with contextlib.suppress(
            pickle_reader.DamagedPickleError
        ):  # a searcher may save what it likes
            _check_attributes(base, _read_keys(own) or (), refusal)


@contextlib.contextmanager
def _fetched(store: ObjectStore) -> Iterator[tuple[Path, Path | None]]:
    """Fetch what was saved last, and yield its directory and the state of a SearchGenerator in it."""
    with tempfile.TemporaryDirectory(prefix="tune-restore-searcher-") as directory:
        saved = Path(directory)
        searcher.fetch_newest(store, saved)
        yield saved, _newest(saved, f"{layout.SEARCH_STATE_PREFIX}*")


def _read_keys(file: Path) -> list[str] | None:
    """Return the keys of a dict that was saved, read symbolically; None if that cannot be told.

    Raises:
        DamagedPickleError: If it is not a whole pickle.
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
    """Return the keys of what a searcher saved, if it is a dict; it may be whatever it likes."""
    try:
        saved = cloudpickle.loads(file.read_bytes())
    except Exception:  # noqa: BLE001  restoring it, which follows, tells
        return ()
    return saved.keys() if isinstance(saved, dict) else ()


def _inner(search: dict[str, Any], refusal: str) -> Searcher:
    search_alg = search["search_alg"]
    inner = search_alg.searcher if isinstance(search_alg, SearchGenerator) else search_alg
    if not isinstance(inner, Searcher):
        raise InvalidInputError(f"{refusal} a {type(inner).__name__} is not a Searcher.")
    return inner


def _own_state(saved: Path, base: Searcher, refusal: str) -> Path:
    """Return where the searcher itself saved what it had learned."""
    own = _newest(saved, base.CKPT_FILE_TMPL.format("*"))
    if own is None:
        raise InvalidInputError(
            f"{refusal} what that one had learned was not saved. Leave search_alg out: trials are "
            "restored without it, and the samples that are left stay undrawn."
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
    """Return what is still to be put around a bare searcher; a wrapped one must be wrapped as saved."""
    saved = [key.removeprefix(_WRAPPED) for key in state if key.startswith(_WRAPPED)]
    given = searcher.wrappers(inner)
    if given == saved:
        return []
    if not given and set(saved) <= set(_WRAP):
        return saved
    raise InvalidInputError(
        f"{refusal} around that was {' and '.join(saved) or 'nothing'}, around this is "
        f"{' and '.join(given) or 'nothing'}."
    )


def _wrap_as_saved(inner: Searcher, state: dict[str, Any], refusal: str) -> Searcher:
    """Put limiter and repeater around a bare searcher as they were."""
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
    """Refuse the attributes of another class; one of another version has more of them, or less."""
    if not set(saved) >= _OF_SEARCHERS:
        return
    missing, foreign = vars(base).keys() - set(saved), set(saved) - vars(base).keys()
    if missing and foreign:
        raise InvalidInputError(
            f"{refusal} it was saved by another class than {type(base).__name__} (it has "
            f"{printable(min(foreign), 60)}, and no {min(missing)}). Name the searcher the "
            "experiment was made with."
        )
