"""A recipe restores the experiments of one trainable: the code, where it runs, and which trials are run.

A DAG or a shell gives it, or a sweep writes its own into `.tune_restore/recipe.json`. That file is
untrusted, like everything in storage. Nothing that it names is imported in an Airflow process.
"""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import msgspec

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.names import is_text
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType
from airflow_tune_restore.restore.record_json import decode, encode
from airflow_tune_restore.storage.location import LOCAL_SCHEMES, Location

ALL_MODULES = "*"
"""The pattern of modules with which a recipe in storage may name everything."""

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000, pattern=r"\S")]
_Kind = Literal["skip", "resume", "restart"]
_NAMES_CODE = ("trainable", "param_space", "search_alg")
_CHOICES = (
    "strategy",
    "fresh_budget",
    "trim_results",
    "remember_scheduler",
    "allow_scratch",
    "newest_checkpoint",
    "ignore_tuner",
    "trust_name",
)
RUN_FIELDS = (*_NAMES_CODE, "imports", "python", "image", "env", "runtime_env")
"""The fields that a task of a trial needs. The others are for the plan."""

_ARGUMENT = re.compile(r"^    (\w[\w,\s]*): (.+(?:\n {8}.*)*)", re.MULTILINE)
"""Names in an `Args:` section of a docstring, and their text."""

_NOT_CODE = ("python", "image", "env", "runtime_env")


class ResumeConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Chooses for trials by their status, as `resume_config` of `BuildRestorePlanOperator`."""

    finished: _Kind | None = None
    unfinished: _Kind | None = None
    errored: _Kind | None = None
    cut_short: _Kind | None = None


class Recipe(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Names what restores the experiments of one trainable. A field without a value leaves the DAG's.

    Args:
        schema: Version of this format.
        trainable: `package.module:attribute`, or a name registered with Tune.
        param_space: `package.module:attribute` of a re-specified param_space.
        search_alg: `package.module:attribute` of a searcher, for samples whose own searcher is lost.
        imports: Modules that the runners import first.
        python: Interpreter that has Ray and the trainable.
        image: Image of the pods, where trials run in pods.
        env: Environment variables of the runners, added to those of the DAG. No secrets.
        runtime_env: Ray runtime_env of jobs, laid over that of the DAG.
        resume_unfinished, resume_errored, restart_errored, resume_cut_short, resume_config: Which trials
            are run, as in `BuildRestorePlanOperator`. A status that is not given leaves the DAG's choice.
        strategy, fresh_budget, trim_results, remember_scheduler, allow_scratch, newest_checkpoint,
            ignore_tuner, trust_name: As in `airflow_tune_restore.restore.choices.PlanChoices`.
    """

    schema: Literal[1] = 1
    trainable: _Text
    param_space: _Text | None = None
    search_alg: _Text | None = None
    imports: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=100)] | None = None
    python: _Text | None = None
    image: _Text | None = None
    env: Annotated[dict[_Text, str], msgspec.Meta(max_length=1000)] | None = None
    runtime_env: dict[str, Any] | None = None
    resume_unfinished: bool | None = None
    resume_errored: bool | None = None
    restart_errored: bool | None = None
    resume_cut_short: bool | None = None
    resume_config: ResumeConfig | None = None
    strategy: Literal["auto", "per_trial", "shared_driver", "whole_experiment"] | None = None
    fresh_budget: bool | None = None
    trim_results: bool | None = None
    remember_scheduler: bool | None = None
    allow_scratch: bool | None = None
    newest_checkpoint: bool | None = None
    ignore_tuner: bool | None = None
    trust_name: bool | None = None

    def __post_init__(self) -> None:
        for text in self._texts():
            if not is_text(text):
                raise ValueError(f"{printable(repr(text))} holds a character that no name can have")
        if wrong := [name for name in self.env or () if "=" in name]:
            raise ValueError(f"{printable(repr(wrong[0]))} cannot be the name of a variable")

    @classmethod
    def parse(cls, value: Any) -> "Recipe":
        """Read a trainable as text, or a mapping of these fields.

        Raises:
            InvalidInputError: If it is neither, or a field is unknown or has a wrong value.
        """
        fields = {"trainable": value.strip()} if isinstance(value, str) else value
        if not isinstance(fields, Mapping):
            raise InvalidInputError(
                f"a {type(value).__name__} is neither a trainable as text nor "
                "a mapping with the key 'trainable'"
            )
        _refuse_unknown(fields, cls.__struct_fields__)
        # a template renders to text: a flag to "True", and a Variable that is not set to "" or "None"
        given = {name: item for name, item in fields.items() if item not in (None, "", "None")}
        if "trainable" not in given:
            raise InvalidInputError("it names no trainable")
        try:
            return msgspec.convert(given, _RECIPE.type, strict=False)
        except (msgspec.ValidationError, ValueError, TypeError, RecursionError) as error:
            raise InvalidInputError(printable(str(error))) from None

    @classmethod
    def from_json(cls, body: bytes) -> "Recipe":
        """Read the file of a sweep.

        Raises:
            ValueError: If it is not valid; or RecursionError or InvalidInputError.
        """
        fields = decode(body, _FIELDS)
        _refuse_unknown(fields, cls.__struct_fields__)
        try:
            return msgspec.convert(fields, _RECIPE.type)
        except msgspec.ValidationError as error:  # a ValueError only since msgspec 0.21
            raise ValueError(str(error)) from error

    def to_json(self) -> bytes:
        """Return the file that a sweep would write."""
        return encode({"schema": self.schema, **msgspec.to_builtins(self)})

    def apply_to(self, choices: PlanChoices) -> PlanChoices:
        """Return the choices of a plan with those that are given here."""
        given = {name: getattr(self, name) for name in _CHOICES}
        changed = {name: value for name, value in given.items() if value is not None}
        return replace(choices, flags=self._flags(choices.flags), **changed)

    def over(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a runner: those given here, else its own. Mappings are joined."""
        laid = dict(own)
        for name, value in own.items():
            given = getattr(self, name)
            if isinstance(given, dict):
                laid[name] = {**(value or {}), **given}
            elif given is not None:
                laid[name] = given
        return laid

    def check_allowed(self, modules: Sequence[str]) -> None:
        """Refuse the recipe of a sweep that names more than the user allows.

        With `ALL_MODULES` everything is allowed but files of the machine that reads the recipe: they
        would be sent to the cluster. With other patterns the recipe may name modules that match, and
        nothing that decides by itself which code runs.

        Raises:
            InvalidInputError: If it names anything else.
        """
        self._refuse_local_files()
        if ALL_MODULES in modules:
            return
        if given := [name for name in _NOT_CODE if getattr(self, name) is not None]:
            raise InvalidInputError(
                f"it has {' and '.join(given)}, which recipes=True alone allows: a list of modules would "
                "limit nothing (in the shell: --recipes '*')"
            )
        for module in self._modules():
            if not any(fnmatchcase(module, pattern) for pattern in modules):
                raise InvalidInputError(
                    f"it names the module {printable(module)}, which is not one of those that "
                    f"recipes={list(modules)!r} allows"
                )
        for name in _NAMES_CODE:
            _, colon, attribute = (getattr(self, name) or "").partition(":")
            # `allowed:os.system` leads out of the module
            if colon and not attribute.isidentifier():
                raise InvalidInputError(
                    f"its {name} does not name an attribute of its module itself"
                )

    def _flags(self, flags: ResumeFlags) -> ResumeFlags:
        """Return the flags with those that are given here; `resume_errored` wins, as in Ray."""
        chosen: dict[str, ResumeType] = {}
        if self.resume_unfinished is not None:
            chosen["unfinished"] = _resume_or_skip(self.resume_unfinished)
        if self.resume_cut_short is not None:
            chosen["cut_short"] = _resume_or_skip(self.resume_cut_short)
        errored = {
            ResumeType.RESUME: self.resume_errored,
            ResumeType.RESTART: self.restart_errored,
        }
        wanted = [kind for kind, is_on in errored.items() if is_on]
        if wanted:
            chosen["errored"] = wanted[0]
        elif errored.get(flags.errored) is False:
            chosen["errored"] = ResumeType.SKIP
        if self.resume_config is not None:
            by_status = msgspec.structs.asdict(self.resume_config)
            chosen |= {name: ResumeType(kind) for name, kind in by_status.items() if kind}
        return replace(flags, **chosen)

    def _texts(self) -> Iterable[str]:
        """Yield all texts that are put on a command line or into an environment."""
        names = (getattr(self, name) for name in (*_NAMES_CODE, "python", "image"))
        yield from (name for name in names if name is not None)
        yield from self.imports or ()
        for item in (self.env or {}).items():
            yield from item

    def _modules(self) -> list[str]:
        named = [getattr(self, name) or "" for name in _NAMES_CODE]
        return [*(n.partition(":")[0] for n in named if ":" in n), *(self.imports or ())]

    def _refuse_local_files(self) -> None:
        runtime_env = self.runtime_env or {}
        modules = runtime_env.get("py_modules") or []
        places = [
            runtime_env.get("working_dir"),
            *(modules if isinstance(modules, list) else [modules]),
        ]
        for place in places:
            is_url = isinstance(place, str) and Location.parse(place).scheme not in LOCAL_SCHEMES
            if place is not None and not is_url:
                raise InvalidInputError(
                    f"its runtime_env names {printable(str(place))}, a place on the machine that reads "
                    "the recipe; it may only name URLs"
                )
        if runtime_env.get("excludes") is not None:  # `!.env` sends what is left out otherwise
            raise InvalidInputError(
                "its runtime_env has excludes, which decide which files of the DAG's working_dir are "
                "sent to the cluster"
            )


_FIELDS, _RECIPE = msgspec.json.Decoder(dict[str, Any]), msgspec.json.Decoder(Recipe)


def _refuse_unknown(fields: Iterable[Any], known: Sequence[str]) -> None:
    for name in fields:
        if name in known:
            continue
        close = get_close_matches(str(name)[:100], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
        raise InvalidInputError(f"a recipe has no field {printable(repr(str(name)))} ({hint})")


def _resume_or_skip(is_on: bool) -> ResumeType:  # noqa: FBT001
    return ResumeType.RESUME if is_on else ResumeType.SKIP


def describe_schema() -> dict[str, Any]:
    """Return the JSON Schema of `.tune_restore/recipe.json`, as `recipe.schema.json` publishes it."""
    schema = msgspec.json.schema(Recipe)
    own = schema["$defs"]["Recipe"]
    own["description"], _, arguments = (inspect.getdoc(Recipe) or "").partition("\n\nArgs:\n")
    for names, text in _ARGUMENT.findall(arguments):
        for name in names.replace(",", " ").split():
            own["properties"][name]["description"] = " ".join(text.split())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"How a sweep is restored ({layout.RECIPE})",
        **schema,
    }
