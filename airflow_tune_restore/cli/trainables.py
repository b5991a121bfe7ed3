"""The trainables of an experiment in the shell: `--trainable` and `--recipes`, joined to recipes."""

import json
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from airflow_tune_restore.cli.options import (
    CheckTimeout,
    Imports,
    ParamSpace,
    RecipePatterns,
    SearchAlg,
)
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol.check import DEFAULT_CHECK_TIMEOUT
from airflow_tune_restore.restore.recipes import FOR_ALL, Recipes, parse_modules

_FILES = (".toml", ".json")

NOTHING_GIVEN = (
    "No trainable is given. Add --trainable package.module:attribute; or, for an experiment that has its "
    "own .tune_restore/recipe.json, --recipes with a pattern of the modules that it may name, such as "
    "--recipes 'team_a.*'."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableOptions:
    """Options that name what restores the experiment."""

    trainable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODULE:ATTR|FILE",
            help="The trainable, or a name registered with Tune. With NAME= only for experiments of the "
            "trainable that was recorded as NAME, or for a glob on the experiment's path. Or a .toml or "
            ".json file with all that. Can be repeated.",
        ),
    ] = None
    recipes: RecipePatterns = None

    @property
    def are_given(self) -> bool:
        """Whether at least one of them is given."""
        return bool(self.trainable or self.recipes)

    def parse(self) -> Recipes:
        """Return the recipes that they give; raises as `parse_trainables`."""
        return parse_trainables(self.trainable or (), self.recipes or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(TrainableOptions):
    """The code that runners run, and how many runners run at the same time."""

    param_space: ParamSpace = None
    search_alg: SearchAlg = None
    imports: Imports = None
    check_timeout: CheckTimeout = DEFAULT_CHECK_TIMEOUT
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many trials run at the same time. By default those that share a driver are as many "
            "as its Ray fits, and others run one by one. The pod of a whole-experiment run fits so many.",
        ),
    ] = None


def parse_trainables(given: Iterable[str], patterns: Collection[str]) -> Recipes:
    """Return the recipes that the values of `--trainable` and `--recipes` give.

    A value of `--trainable` is `MODULE:ATTR`, for all experiments; `NAME=MODULE:ATTR`; or a file.

    Raises:
        InvalidInputError: If neither option is given, a value or a file is not valid, or two of them are
            for the same experiments.
    """
    modules = parse_patterns(patterns)
    joined: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for text in given:
        try:
            entries = _parse(text.strip())
            Recipes.parse(entries)
        except InvalidInputError as error:
            reason = str(error).rstrip(".")
            raise InvalidInputError(
                f"--trainable {text}: {reason}. Correct it and run the command again."
            ) from None
        for name, value in entries.items():
            key = FOR_ALL[0] if name in FOR_ALL else name
            if key in sources:
                whom = "all experiments" if key in FOR_ALL else json.dumps(key)
                raise InvalidInputError(
                    f"Two trainables are given for {whom}: by --trainable {sources[key]} and by "
                    f"--trainable {text}. Keep one of them."
                )
            sources[key] = text
            joined[key] = value
    if not (joined or modules):
        raise InvalidInputError(NOTHING_GIVEN)
    return Recipes.parse(joined or None, recipes=modules)


def parse_patterns(patterns: Collection[str]) -> tuple[str, ...]:
    """Return the values of `--recipes` (InvalidInputError if one is not a pattern)."""
    if not all(pattern.strip() for pattern in patterns):
        raise InvalidInputError("--recipes '' is not a pattern of modules such as 'team_a.*'.")
    return parse_modules(list(patterns))


def _parse(text: str) -> Mapping[str, Any]:
    if text.endswith(_FILES):
        return _read(Path(text))
    name, separator, trainable = text.rpartition(
        "="
    )  # globs and names may have one, modules have none
    if not trainable.strip() or (separator and not name.strip()):
        raise InvalidInputError(
            "it is neither MODULE:ATTR nor NAME=MODULE:ATTR nor a file that ends in .toml or .json"
        )
    return {name.strip() or FOR_ALL[0]: trainable}


def _read(path: Path) -> Mapping[str, Any]:
    """Read a file of trainables by name or glob."""
    try:
        body = path.read_text(encoding="utf-8")
        entries = (
            tomllib.loads(body)
            if path.suffix == ".toml"
            else json.loads(body, object_pairs_hook=_without_repeats)
        )
    except OSError as error:
        raise InvalidInputError(f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInputError("it is not UTF-8 text") from None
    except ValueError as error:
        raise InvalidInputError(f"it is not valid {path.suffix[1:].upper()}: {error}") from None
    except RecursionError:
        raise InvalidInputError("it nests too deeply") from None
    if not isinstance(entries, dict) or not entries:
        raise InvalidInputError(
            "it gives no trainable. Each key is the recorded name of one, or a glob on the experiment's "
            'path, as in {"train": "package.module:attribute"}'
        )
    return entries


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON. A name twice is refused, as in TOML: the first one would be lost."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {json.dumps(twice)} is in it twice")
    return entries
