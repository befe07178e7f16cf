"""Command line options: those of `bench.config.options`, made from their definitions, and those of several commands.

`with_options` gives a command one typer option per definition. Help text, default, choices, range, short form and help
panel come from the definition, so a new option needs no change here.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from bench.cli.console import complete_models, completer
from bench.config.options import OPTIONS, Option
from bench.errors import BenchError

METHOD_PANEL = "Profile and settings"
FILES_PANEL = "Files"
RECORDS_PANEL = "Choice of records"
COMMAND_PANEL = "This command"

_NAMES = {"method": "methods", "dataset": "datasets"}
"""Options whose values are names of `bench list`: the shell completes them."""

Profile = Annotated[
    str | None,
    typer.Option(
        help="Profile of bench.toml; see `bench list profiles`.",
        metavar="NAME",
        show_default="demo",
        autocompletion=completer("profiles"),
        rich_help_panel=METHOD_PANEL,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Setting of a method, repeatable: epochs=50, or aminet.epochs=50 for one method.",
        metavar="KEY=VALUE",
        rich_help_panel=METHOD_PANEL,
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        help="Values of a setting, one run each, repeatable: clusters=2,4 or, if values contain commas, "
        "stages='1,2;1,2,3'.",
        metavar="KEY=VALUES",
        rich_help_panel=METHOD_PANEL,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the dataset.", metavar="DIR", show_default="[paths.data]", rich_help_panel=FILES_PANEL
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Folder of backbone weights, searched before any download; auto for packages and timm's hub only.",
        metavar="DIR|auto",
        show_default="[paths] weights",
        rich_help_panel=FILES_PANEL,
    ),
]
Runs = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the records.", metavar="DIR", show_default="[paths] runs", rich_help_panel=FILES_PANEL
    ),
]
Run = Annotated[
    str,
    typer.Argument(
        help="Run with a saved model: the path of a record or its folder, or its path below the folder of runs, for "
        "example demo/kshot-4/aminet/gear.",
        metavar="RUN",
        autocompletion=complete_models,
    ),
]
Category = Annotated[str | None, typer.Option(help="Category of the run, if RUN does not name one.", metavar="NAME")]


def with_options(names: Iterable[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter `options` of a command by one command line option per name.

    The command is called with `options`: the values by name, None for an option that is not on the command line.
    """
    selected = [OPTIONS[name] for name in names]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def call(**arguments: Any) -> None:
            options = {option.name: _given_value(option, arguments.pop(option.name)) for option in selected}
            command(options=options, **arguments)

        return _replace_parameter(call, command, "options", [_parameter(option) for option in selected])

    return decorate


def with_criteria(names: Iterable[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter `criteria` of a command by one option per name that chooses stored records.

    The command is called with `criteria`: the texts of the options on the command line by name.
    """
    selected = [OPTIONS[name] for name in names]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def call(**arguments: Any) -> None:
            texts = {option.name: ",".join(arguments.pop(option.name) or []) for option in selected}
            command(criteria={name: text for name, text in texts.items() if text}, **arguments)

        return _replace_parameter(call, command, "criteria", [_criterion_parameter(option) for option in selected])

    return decorate


def _criterion_parameter(option: Option) -> Parameter:
    details = typer.Option(
        *([option.flag, f"-{option.short}"] if option.short else [option.flag]),
        help=f"Only records with this {option.name}; several are separated by commas, or the option is repeated.",
        metavar="NAME,..." if option.type is not int and option.name not in {"seed", "k"} else "INT,...",
        show_default=False,
        autocompletion=_completion(option),
        rich_help_panel=RECORDS_PANEL,
    )
    annotation = Annotated[list[str] | None, details]
    return Parameter(option.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _given_value(option: Option, value: bool | list[str] | None) -> bool | str | None:
    """Return the value of an option as text, or of a flag; None if it is not on the command line.

    Raises BenchError if an option with one value is given twice, of which click would silently use the last.
    """
    if not isinstance(value, list):
        return value
    if get_origin(option.type) is not tuple and len(value) > 1:
        raise BenchError(f"{option.flag} must be given once, got {' and '.join(value)}. Remove all but one.")
    return ",".join(value) if value else None


def _replace_parameter(
    call: Callable[..., None], command: Callable[..., None], name: str, replacements: list[Parameter]
) -> Callable[..., None]:
    """Give `call` the signature of the command with one parameter replaced by others; typer reads it."""
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        if parameter.name == name:
            parameters += replacements
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # read by typer
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def value_or_default(options: Mapping[str, Any], name: str) -> Any:
    """Return the value of an option, or its default if it is not on the command line; for commands without a plan."""
    return OPTIONS[name].default if options[name] is None else options[name]


def value_text(option: Option) -> str:
    """Return the kind of value that an option takes: "last|oracle|both", "INT,...", "FLOAT"."""
    if option.choices:
        return "|".join(map(str, option.choices))
    value_type = get_args(option.type)[0] if get_origin(option.type) is tuple else option.type
    text = {int: "INT", float: "FLOAT", bool: "", str: "TEXT"}[value_type]
    return f"{text},..." if get_origin(option.type) is tuple else text


def range_text(option: Option) -> str:
    """Return the range of an option, ">= 0, < 1", or "" if it is unlimited."""
    limits = [f">= {option.minimum:g}"] if option.minimum is not None else []
    limits += [f"< {option.below:g}"] if option.below is not None else []
    return ", ".join(limits)


def default_text(option: Option) -> str:
    """Return the default of an option as on the command line; "" for an empty one."""
    if isinstance(option.default, tuple):
        return ",".join(map(str, option.default))
    if isinstance(option.default, bool):
        return "on" if option.default else "off"
    return f"{option.default:g}" if isinstance(option.default, float) else str(option.default)


def _parameter(option: Option) -> Parameter:
    """Return the command line option as a parameter of a command. Its value is text, which `make_plan` parses."""
    limits = range_text(option)
    is_flag = option.type is bool
    flags = [f"{option.flag}/--no-{option.flag[2:]}" if is_flag else option.flag]
    flags += [f"-{option.short}"] if option.short else []
    details = typer.Option(
        *flags,
        help=option.help + (f" Must be {limits}." if limits else ""),
        metavar=None if is_flag else value_text(option),
        show_default=default_text(option) or False,
        autocompletion=_completion(option),
        rich_help_panel=option.title,
    )
    value_type: Any = bool if is_flag else list[str]
    annotation = Annotated[value_type | None, details]  # not a static type
    return Parameter(option.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _completion(option: Option) -> Callable[[str], list[str]]:
    """Return the shell completion of an option: names of plug-ins, or its choices."""
    if option.name in _NAMES:
        return completer(_NAMES[option.name])

    def complete(text: str) -> list[str]:
        return [choice for choice in map(str, option.choices) if choice.startswith(text)]

    return complete
