"""Groups of options: Typer sees each field of a dataclass as an option of the command."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import typer


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let Typer see each field of a command's option groups as a parameter of the command.

    A parameter whose type is a dataclass is a group. The command is called with the group, made of its
    options.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _parameters(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))

    @functools.wraps(command)
    def flat(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{each.name: given.pop(each.name) for each in fields(group)})
        command(**given)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _parameters(group: Any) -> list[inspect.Parameter]:
    """Return the fields of an option group as parameters."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=_as_option(field, *get_args(hints[field.name])),
        )
        for field in fields(group)
    ]


def _as_option(field: "Field[Any]", kind: Any, described: Any) -> Any:
    if isinstance(described, str):
        names = [flag_of(field.name)] if field.default is False else []
        described = typer.Option(*names, help=described)
    return Annotated[kind, described]


def flag_of(name: str) -> str:
    """Return the option of a field, as it is written in a shell."""
    return f"--{name.replace('_', '-')}"
