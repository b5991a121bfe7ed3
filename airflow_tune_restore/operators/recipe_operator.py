"""The base of the operators that know which trainable restores which experiment."""

from collections.abc import Mapping, Sequence
from typing import Any

from airflow_tune_restore.arguments import parse_text, parse_trainable
from airflow_tune_restore.hooks.checked_operator import CheckedOperator
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.recipe import RUN_FIELDS
from airflow_tune_restore.restore.recipes import Recipes
from airflow_tune_restore.storage.base import ObjectStore


class RecipeOperator(CheckedOperator):
    """Base of the operators that plan or run a restore.

    Args:
        trainable: What restores the experiments: `package.module:attribute`, or a name registered with
            Tune; or a mapping to it, or to a record (`airflow_tune_restore.restore.recipe.Recipe`), from
            the recorded name of a trainable or a glob on the experiment's path. (templated)
        recipes: Whether sweeps may bring their own `.tune_restore/recipe.json`: True, or patterns of
            modules that it may name. Never from a template.
        prefix: Place that globs on the paths of experiments start from; by default the bucket, or the
            root of the file system. (templated)
        param_space: `package.module:attribute` of a re-specified param_space. (templated)
        search_alg: `package.module:attribute` of a searcher, for samples whose own is lost. (templated)
        imports: Modules that the runners import first.
        python: Interpreter that has Ray and the trainable. (templated)
        env: Environment variables of the runners. No secrets.
    """

    template_fields: Sequence[str] = ("trainable", "prefix", "param_space", "search_alg", "python")

    def __init__(
        self,
        *,
        trainable: str | Mapping[str, Any] | None = None,
        recipes: bool | Sequence[str] = False,
        prefix: str | None = None,
        param_space: str | None = None,
        search_alg: str | None = None,
        imports: Sequence[str] = (),
        python: str | None = None,
        env: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.trainable = trainable
        self.recipes = recipes
        self.prefix = prefix
        self.param_space = param_space
        self.search_alg = search_alg
        self.imports = imports
        self.python = python
        self.env = env
        self._has_recipe = False

    @classmethod
    def check_literals(cls, values: Mapping[str, Any]) -> None:
        """Check the arguments that Airflow does not compute when the task runs; `prefix` may be None."""
        super().check_literals({k: v for k, v in values.items() if (k, v) != ("prefix", None)})

    def parse_recipes(self) -> Recipes:
        """Return the recipes of all experiments (InvalidInputError if an argument is not valid)."""
        trainable = parse_trainable("trainable", self.trainable)
        return Recipes.parse(trainable, recipes=self.recipes, prefix=self.parse_prefix())

    def parse_prefix(self) -> str | None:
        """Return the URI of the prefix, without a connection; None without one."""
        place = parse_text(self.prefix)
        return Address.parse(place).uri if place else None

    def use_recipe(self, store: ObjectStore, trainable_name: str) -> None:
        """Take the arguments that the recipe of a task's experiment gives, once.

        Raises:
            UnknownTrainableError: If no recipe restores it.
        """
        if self._has_recipe:
            return
        recipe = self.parse_recipes().choose(store, trainable_name)
        own = {name: getattr(self, name) for name in RUN_FIELDS if hasattr(self, name)}
        for name, value in recipe.over(own).items():
            setattr(self, name, value)
        self._has_recipe = True
        if unused := [n for n in RUN_FIELDS if n not in own and getattr(recipe, n) is not None]:
            self.log.info(
                "The recipe of %s has %s, which counts on other launchers only.",
                *(store.uri, " and ".join(unused)),
            )

    def runner_settings(self) -> RunnerSettings:
        """Return the settings of the runner that do not depend on where it runs."""
        return settings_of(vars(self))


def settings_of(given: Mapping[str, Any]) -> RunnerSettings:
    """Return the settings of the runner from the arguments of a task, with its recipe laid over them."""
    return RunnerSettings(
        trainable=str(given["trainable"]),
        param_space=parse_text(given["param_space"]),
        search_alg=parse_text(given["search_alg"]),
        imports=given["imports"],
    )
