"""Parses the command line; errors have one line."""

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from itertools import chain, pairwise, takewhile
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sdekit import did_you_mean

Command = Callable[..., None]


def parsed(commands: Mapping[str, Command], argv: Sequence[str] | None) -> Callable[[], None]:
    """The command that the arguments name, ready to run.

    Arguments:
        commands: functions by name; their parameters, and the fields of those that are dataclasses,
            are the options.
        argv: the arguments; those of the process unless given.

    Raises:
        ValueError: for arguments that are not a valid command.
        ImportError: when tyro is not installed.
    """
    try:
        import tyro
    except ImportError as error:
        raise ImportError("the command line needs tyro: pip install 'sdekit[app]'") from error

    argv = sys.argv[1:] if argv is None else argv
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in commands.items()},
                prog="sdekit-diffusion",
                description="Score-based generative models: train, sample, evaluate.",
                args=argv,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(
            f"{_message(stderr.getvalue())}; add --help to see what is "
            f"allowed{_suggestion(commands, argv, stderr.getvalue())}"
        ) from None


def _deferred(command: Command) -> Callable[..., Callable[[], None]]:
    """A function with the signature of a command that returns the call instead of making it."""
    return functools.wraps(command)(
        lambda *args, **options: functools.partial(command, *args, **options)
    )


def _message(output: str) -> str:
    """tyro's message in one line: the text in its box, above the first horizontal rule."""
    lines = [line.strip("│ ") for line in output.splitlines() if line.startswith("│")]
    text = " ".join(takewhile(lambda line: line[:2] != "──", lines))
    text = text.partition(" Got errors: ")[0]  # of each type in turn
    text = re.sub("__tyro.dummy.inner__[.]?", "", text)  # tyro's own, in some of its versions
    text = re.sub(r"^Error parsing (--[\w-]+): ", r"\1: ", text)
    text = re.sub(r"^Error parsing [`\w.-]+: ", "", text)  # our own message follows
    text = re.sub(
        r"no type matching (\S+) could be instantiated from \[(.*)\]", r"\2 is not \1", text
    )
    text = re.sub(r"'None', |, 'None'|\{None\}\|", "", text)  # an option that is left out
    return " ".join((text or output).split()).rstrip(".")


def _suggestion(commands: Mapping[str, Command], argv: Sequence[str], output: str) -> str:
    """A hint for a message of tyro: the command, the option or the allowed value of an option that
    is closest to the one given.
    """
    if not argv or argv[0] not in commands:
        unknown = next((word for word in argv[:1] if word[:1] != "-"), None)
        hint = f"; {unknown!r} is not one of {', '.join(commands)}{did_you_mean(unknown, commands)}"
        return hint if unknown else ""
    if options := _options(output, argv[0]):
        unknown = re.findall(r"--[\w-]+", output.partition("Perhaps")[0])
        return next(filter(None, (did_you_mean(option, options) for option in unknown)), "")
    choices = _choices(commands[argv[0]])
    words = [word.split("=", 1) if word[:2] == "--" else [word] for word in argv[1:]]
    for option, value in pairwise(chain.from_iterable(words)):
        allowed = choices.get(option, ())
        if allowed and value not in allowed:
            return did_you_mean(value, allowed)
    return ""


def _options(output: str, command: str) -> list[str]:
    """The options of a command that tyro's message suggests, each above the commands that have
    it.
    """
    options = []
    option = ""
    for line in (line.strip("│ ") for line in output.splitlines()):
        if line[:2] == "--":
            option = line.split()[0]
        elif line == f"in sdekit-diffusion {command} --help":
            options.append(option)
    return options


def _choices(kind: Any) -> dict[str, tuple[str, ...]]:  # noqa: ANN401
    """The options of a command or dataclass that take one of several names, with these names."""
    choices: dict[str, tuple[str, ...]] = {}
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            choices |= _choices(hint)
            continue
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        names = [part for part in parts if part is not NoneType]
        if names and all(get_origin(part) is Literal for part in names):
            allowed = [str(value) for part in names for value in get_args(part)]
            none_choice = ["None"] if NoneType in parts else []
            choices["--" + name.replace("_", "-")] = (*allowed, *none_choice)
    return choices
