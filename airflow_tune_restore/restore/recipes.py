"""Which recipe restores which experiment.

The most specific one counts: a glob on the experiment's path, the longest first; the recorded name of its
trainable; the recipe that the sweep wrote, where that is allowed; at last the trainable for all others.
"""

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyNotFoundError,
    LinkRefusedError,
    TooLargeError,
    UnknownTrainableError,
)
from airflow_tune_restore.experiments import path_glob
from airflow_tune_restore.experiments.examine import is_experiment
from airflow_tune_restore.experiments.read import not_an_experiment
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.restore.recipe import ALL_MODULES, Recipe
from airflow_tune_restore.storage.base import ObjectStore

MAX_RECIPE_BYTES = 64 * 1024
"""A recipe is some lines of JSON; a larger file is refused."""

FOR_ALL = ("*", "**")
"""The globs that every experiment matches: they give the recipe for all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipes:
    """The recipes of one run.

    Args:
        by_path: Globs on the experiment's path, and their recipes.
        by_name: Recorded names of trainables, and their recipes.
        others: For experiments that no other recipe fits; None: they are not restored.
        modules: Patterns of modules that a sweep's own recipe may name; empty: it is not read.
        prefix: URI that the globs start from; None for the bucket, or the root of the file system.
    """

    by_path: Mapping[str, Recipe] = field(default_factory=dict)
    by_name: Mapping[str, Recipe] = field(default_factory=dict)
    others: Recipe | None = None
    modules: tuple[str, ...] = ()
    prefix: str | None = None

    @classmethod
    def parse(
        cls, trainable: Any, *, recipes: bool | Sequence[str] = False, prefix: str | None = None
    ) -> "Recipes":
        """Read the arguments `trainable`, `recipes` and `prefix` of an operator.

        Raises:
            InvalidInputError: If one of them is not valid.
        """
        if not isinstance(trainable, str | Mapping | None):
            raise InvalidInputError(f"trainable={trainable!r} is neither text nor a mapping.")
        if isinstance(trainable, str):
            trainable = {"*": trainable} if trainable.strip() else None
        if trainable is not None and not trainable:
            raise InvalidInputError(
                "trainable={} names no trainable. Give at least one entry: the recorded name of a "
                "trainable, or a glob on the experiment's path, and what restores it."
            )
        keyed = (trainable or {}).items()
        parsed = {str(key): _parse_entry(str(key), value) for key, value in keyed}
        others = [parsed[key] for key in FOR_ALL if key in parsed]
        if len(others) > 1:
            raise InvalidInputError(
                'Two trainables are given for all experiments: "*" and "**". Keep one of them.'
            )
        return cls(
            by_path={k: v for k, v in parsed.items() if path_glob.is_glob(k) and k not in FOR_ALL},
            by_name={k: v for k, v in parsed.items() if not path_glob.is_glob(k)},
            others=others[0] if others else None,
            modules=parse_modules(recipes),
            prefix=prefix,
        )

    @property
    def is_for_all(self) -> bool:
        """Whether one recipe restores all experiments."""
        return not (self.by_path or self.by_name or self.modules)

    def goes_by_name(self, chosen: Recipe) -> bool:
        """Whether a chosen recipe fits by the name of a trainable, not by a place or the sweep's word."""
        return any(chosen is each for each in (self.others, *self.by_name.values()))

    def choose(self, store: ObjectStore, trainable_name: str) -> Recipe:
        """Return the recipe of the experiment at the store's root.

        Args:
            store: The store of the experiment.
            trainable_name: The recorded name of its trainable.

        Raises:
            UnknownTrainableError: If there is none, or if the sweep's own one cannot be used.
        """
        matching = [key for key in self.by_path if path_glob.matches(store.uri, key, self.prefix)]
        if matching:
            return self.by_path[max(matching, key=len)]
        if trainable_name in self.by_name:
            return self.by_name[trainable_name]
        problem = ""
        if self.modules:
            try:
                return read_recipe(store, self.modules)
            except KeyNotFoundError:
                pass
            except InvalidInputError as error:
                problem = str(error)
        if self.others is not None and not problem:
            return self.others
        shown = printable(trainable_name)
        is_key = shown == trainable_name != "" and not path_glob.is_glob(shown)
        key = shown if is_key else glob.escape(store.uri)
        raise UnknownTrainableError(store.uri, shown, problem, key=key)


def read_recipe(store: ObjectStore, modules: Sequence[str] = (ALL_MODULES,)) -> Recipe:
    """Read the recipe that the sweep at the store's root has written.

    Raises:
        KeyNotFoundError: If it has none.
        InvalidInputError: If it is not valid, or names more than the patterns of modules allow.
    """
    try:
        recipe = Recipe.from_json(store.get(layout.RECIPE, max_bytes=MAX_RECIPE_BYTES))
        recipe.check_allowed(modules)
    except (
        TooLargeError,
        LinkRefusedError,
        ValueError,
        RecursionError,
        InvalidInputError,
    ) as error:
        reason = printable(str(error)).rstrip(".")
        raise InvalidInputError(f"{layout.RECIPE} cannot be used: {reason}") from None
    return recipe


def write_recipe(store: ObjectStore, recipe: Recipe, *, overwrite: bool = False) -> None:
    """Write the recipe of the experiment at the store's root.

    Raises:
        InvalidInputError: If `read_recipe` would refuse the recipe.
        StateUnreadableError: If it is not an experiment.
        KeyExistsError: If it has one, which is not to be overwritten.
    """
    if not is_experiment(store.list_dir()):
        raise not_an_experiment(store)
    recipe.check_allowed((ALL_MODULES,))
    body = recipe.to_json()
    if len(body) > MAX_RECIPE_BYTES:
        raise InvalidInputError(f"it has more than {MAX_RECIPE_BYTES} bytes")
    write = store.put if overwrite else store.create
    write(layout.RECIPE, body)


def parse_modules(recipes: Any) -> tuple[str, ...]:
    """Read the argument `recipes`: False, True, or patterns of modules.

    Raises:
        InvalidInputError: If it is anything else.
    """
    if isinstance(recipes, bool):
        return (ALL_MODULES,) if recipes else ()
    is_list = isinstance(recipes, list | tuple)
    if not is_list or not all(isinstance(p, str) and p.strip() for p in recipes):
        raise InvalidInputError(
            f"recipes={recipes!r} is neither True nor False nor a list of patterns of modules such as "
            "['team_a.*']."
        )
    return tuple(pattern.strip() for pattern in recipes)


def _parse_entry(key: str, value: Any) -> Recipe:
    if not key.strip():
        raise InvalidInputError(
            "trainable={'': …} names no experiment: each key is the recorded name of a trainable, or a "
            "glob on the experiment's path."
        )
    if "{{" in key or "{%" in key:
        raise InvalidInputError(
            f"trainable={{{key!r}: …}}: Airflow does not render a template in a key. Give the name or "
            "the glob itself."
        )
    if path_glob.is_glob(key):
        path_glob.check_pattern("trainable", key)
    try:
        return Recipe.parse(value)
    except InvalidInputError as error:
        raise InvalidInputError(f"trainable[{json.dumps(key)}]: {error}.") from None
