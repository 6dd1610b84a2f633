"""Options of the command line, made from the fields of settings: a command takes settings and is given them whole.

A parameter of a command that is annotated with a class of ``settings`` becomes one option per field that has help, in
a group of its own; one annotated with ``Given`` is told which options were given. Nothing is taken from a default that
somebody else set: an option that was not given is not passed, and one that was given twice is refused unless it can be
repeated.
"""

import contextlib
import dataclasses
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.models import ParameterInfo

from ..errors import UserError
from ..settings.fields import flag_of, options_of
from ..storage.paths import place

UsageError = typer.BadParameter.__mro__[2]  # click's base class, wherever this typer keeps its click
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="a folder, a Hub id or a .gguf file", show_default=False)
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="write the artifact there; parent folders are made")
]
Folder = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", help="folder for the model; it appears only when complete")
]
Json = Annotated[bool, typer.Option("--json", help="print the artifact on stdout and nothing else")]
SETTING_HELP = "a method's own setting; may be repeated"
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SETTING_HELP)]
EVAL_TEXT_HELP = "text to measure perplexity on; may be repeated; by default the shipped prose"
EvalText = Annotated[list[str] | None, typer.Option("--eval-text", metavar="FILE", help=EVAL_TEXT_HELP)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="show no progress")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="also show what libraries log, and where an error was raised")
]
COMMON = {"quiet": Quiet, "verbose": Verbose}
LOUD: ContextVar[tuple[bool, bool]] = ContextVar("loud", default=(False, False))  # quiet, verbose


class CommandEnd(Exception):
    """Carries what typer would turn into a bare exit status.

    An interruption, or a reader of the output that has gone.
    """


@dataclasses.dataclass(frozen=True)
class As:
    """How a command shows some settings: other names of their options, and fields that it leaves out or takes alone."""

    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    without: frozenset[str] = frozenset()
    only: frozenset[str] = frozenset()
    optional: bool = False

    def shows(self, name: str) -> bool:
        return name not in self.without and (not self.only or name in self.only)


class GivenOptions(dict):
    """Options that were given: their names, such as ``--samples`` -> the value."""

    def refuse(self, names: Iterable[str], why: str) -> None:
        """Raise a UserError if one of these options was given."""
        for name in names:
            if name in self:
                raise UserError(f"{name} has nothing to say here: {why}")


class Command(TyperCommand):
    """A command that refuses an option given twice, and shows its options in groups."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        single = [
            param for param in order if param.param_type_name == "option" and not param.multiple and not param.count
        ]
        for param in single:
            if single.count(param) > 1:
                raise UserError(f"{max(param.opts, key=len)} was given twice; it takes one value")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                title = (
                    "Arguments"
                    if param.param_type_name == "argument"
                    else getattr(param, "rich_help_panel", None) or "Options"
                )
                groups.setdefault(title, []).append(record)
        for title in sorted(groups, key=lambda title: (title != "Arguments", title == "Options")):
            with formatter.section(title):
                formatter.write_dl(groups[title])


def command(function: Callable[..., None]) -> Callable[..., None]:
    """The function with its settings spread out as options, for typer."""
    hints = typing.get_type_hints(function, include_extras=True)
    plain: list[inspect.Parameter] = []
    kinds: dict[str, tuple[type, As]] = {}
    given_name = None
    for name, parameter in inspect.signature(function).parameters.items():
        kind, how = _settings(hints[name])
        if hints[name] is GivenOptions:
            given_name = name
        elif kind is None:
            plain.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
        else:
            kinds[name] = kind, how
            plain += [_option(name, field, how, kind) for field in options_of(kind).values() if how.shows(field.name)]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in COMMON.items()
    ]
    own_flags = {parameter.name: _own_option(parameter) for parameter in plain if "__" not in parameter.name}
    flags = {
        f"{name}__{field}": _flag(kind, field, how) for name, (kind, how) in kinds.items() for field in options_of(kind)
    }

    def call(**values: Any) -> None:
        loud = tuple(values.pop(name) for name in COMMON)
        given = {key: value for key, value in values.items() if key in flags and value is not None and value != []}
        own = {key: value for key, value in values.items() if key not in flags}
        if given_name:
            own[given_name] = GivenOptions(
                {flags[key]: value for key, value in given.items()} | _given_flags(own, own_flags)
            )
        for name, (kind, how) in kinds.items():
            fields = {key.partition("__")[2]: value for key, value in given.items() if key.partition("__")[0] == name}
            own[name] = None if how.optional and not fields else kind(**fields)
        token = LOUD.set(loud)
        try:
            function(**{key: _expand(value) for key, value in own.items()})
        except (KeyboardInterrupt, BrokenPipeError) as error:
            raise CommandEnd from error
        finally:
            LOUD.reset(token)

    call.options = _by_argument(kinds) | own_flags
    call.__name__ = function.__name__
    call.__doc__ = function.__doc__
    call.__signature__ = inspect.Signature([*plain, *common])
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in (*plain, *common)}
    return call


def _given_flags(values: dict[str, Any], options: dict[str, str]) -> dict[str, Any]:
    """The options that a command has by itself, and that were given."""
    return {
        options[name]: value
        for name, value in values.items()
        if name in options and value is not None and value != [] and value is not False
    }


def _own_option(parameter: inspect.Parameter) -> str:
    """What a parameter of the command itself is called on the command line: its option, or what stands for it."""
    about = next(one for one in typing.get_args(parameter.annotation) if isinstance(one, ParameterInfo))
    names = about.default, *(about.param_decls or ())  # typer takes the first name for a default
    return next((name for name in names if isinstance(name, str) and name.startswith("--")), about.metavar)


def _by_argument(kinds: dict[str, tuple[type, As]]) -> dict[str, str]:
    """Field -> option of all settings; where two have a field of one name it is the first's."""
    options: dict[str, str] = {}
    for kind, how in kinds.values():
        for name, field in options_of(kind).items():
            options.setdefault(name, how.renamed.get(name) or flag_of(field))
    return options


def _expand(value: Any) -> Any:
    return place(value) if isinstance(value, Path) else value


def _settings(hint: Any) -> tuple[type | None, As]:
    """The class of settings that a parameter takes, if it does, and how they are shown."""
    how = As()
    if typing.get_origin(hint) is Annotated:
        hint, *more = typing.get_args(hint)
        how = next((one for one in more if isinstance(one, As)), how)
    options = [one for one in typing.get_args(hint) if one is not type(None)]
    if options and len(options) < len(typing.get_args(hint)):
        hint = options[0]
        how = dataclasses.replace(how, optional=True)
    return (hint, how) if dataclasses.is_dataclass(hint) and hint is not As else (None, how)


def _flag(kind: type, name: str, how: As) -> str:
    return how.renamed.get(name) or flag_of(options_of(kind)[name]).partition("/")[0]


def _option(name: str, field: dataclasses.Field, how: As, kind: type) -> inspect.Parameter:
    about = field.metadata
    flag = how.renamed.get(field.name) or flag_of(field)
    value_type = about["kind"] or _value_type(field)
    annotation = list[str] | None if value_type is list else value_type | None
    default = field.default if field.default not in (dataclasses.MISSING, None, (), False, True) else None
    help_text = about["help"] + (f" [{default}]" if default is not None else "")
    group = sys.modules[kind.__module__].GROUP
    arguments = {"help": help_text, "rich_help_panel": group, "show_default": False}
    if about["metavar"] and value_type is not bool:
        arguments["metavar"] = about["metavar"]
    return inspect.Parameter(
        f"{name}__{field.name}",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, typer.Option(flag, **arguments)],
    )


def _value_type(field: dataclasses.Field) -> type:
    hint = field.type
    options = [one for one in typing.get_args(hint) if one is not type(None)] or [hint]
    return next(one for one in (bool, int, float, str) if one in options)


@contextlib.contextmanager
def running(*, light: bool = False) -> Iterator[None]:
    """Where a command computes.

    With the other processes that a launcher started, progress shown, libraries kept quiet.

    Args:
        light: only files are read and written, by one process: no large library is loaded.
    """
    package = __package__.rpartition(".")[0]
    if light:
        progress = importlib.import_module(f"{package}.runtime.progress")
        with progress.stdout_to_stderr(), progress.shown(not LOUD.get()[0]):
            yield
        return
    names = ("runtime.distributed", "runtime.progress", "anatomy.loading")
    distributed, progress, loading = (importlib.import_module(f"{package}.{name}") for name in names)
    quiet, verbose = LOUD.get()
    with contextlib.ExitStack() as stack:
        stack.enter_context(progress.stdout_to_stderr())
        stack.enter_context(distributed.process_group())
        stack.enter_context(progress.shown(distributed.rank() == 0 and not quiet))
        if not verbose:
            stack.enter_context(loading.quiet())
        yield


def finish(result: Any, json: bool, table: str, out: Path | None) -> None:
    """Show a result: the artifact as JSON, or the table of that name."""
    package = __package__.rpartition(".")[0]
    progress = importlib.import_module(f"{package}.runtime.progress")
    distributed = sys.modules.get(f"{package}.runtime.distributed")  # not loaded where one process read files alone
    if distributed is not None and distributed.rank():
        return
    if json:
        artifacts = importlib.import_module(f"{package}.artifacts")
        texts = [artifacts.dumps(one) for one in (result if isinstance(result, list) else [result])]
        progress.stdout().write(
            texts[0] if not isinstance(result, list) else "[\n" + ",\n".join(text.rstrip() for text in texts) + "\n]\n"
        )
    else:
        modules = (importlib.import_module(f"{__package__}.{name}") for name in ("tables", "measurement_tables"))
        next(filter(None, (getattr(module, f"{table}_table", None) for module in modules)))(result, out)


def key_values(settings: list[str] | None) -> dict[str, str]:
    """``--set key=value`` as a dictionary."""
    values: dict[str, str] = {}
    for item in settings or ():
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"--set {item!r}: write key=value")
        if key in values:
            raise UserError(f"--set {key} was given twice; it takes one value")
        values[key] = value
    return values
