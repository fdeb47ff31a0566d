"""From a table of functions to a command line: overview, help, options, config files."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from ctf.errors import InputError

Verb = Callable[..., None]
Verbs = Mapping[str, "Verb | Mapping[str, Verb]"]


def dispatch(verbs: Verbs, arguments: list[str]) -> None:
    """Find the verb that `arguments` begin with, parse the rest by its signature, and call it.

    Each function's docstring gives its help: the first line, an "Example:" and "Args:". Only the chosen verb's
    parser is built, so help is fast however many verbs there are.

    Raises:
        InputError: no such verb, or options that do not fit.
        SystemExit: after `--help` and `--print_config`.
    """
    chosen: Any = verbs
    words = ["ctf"]
    while isinstance(chosen, Mapping):
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview(words, chosen))
            return
        word, *arguments = arguments
        if word == "--version" and len(words) == 1:
            from importlib.metadata import version

            print(f"ctf {version('ctf')}")
            return
        if word not in chosen:
            raise InputError(f"`{' '.join(words)} {word}` does not exist: choose one of {', '.join(chosen)}")
        words.append(word)
        chosen = chosen[word]
    _run(" ".join(words), chosen, arguments)


def _overview(words: list[str], verbs: Mapping[str, Any]) -> str:
    lines = [f"usage: {' '.join(words)} VERB [options]", ""]
    if len(words) == 1:
        lines += ["Coarse-to-fine autoregressive image generation.", ""]
    for name, verb in verbs.items():
        text = ", ".join(verb) if isinstance(verb, Mapping) else (verb.__doc__ or "").splitlines()[0]
        lines.append(f"  {name:12}{text}")
    first = next(verb for verb in verbs.values() if not isinstance(verb, Mapping))
    return "\n".join([*lines, "", f"`{' '.join(words)} VERB --help` explains each.", "", _example(first)])


def _example(verb: Verb) -> str:
    """The verb's example, a shell command that may span lines."""
    text = (inspect.getdoc(verb) or "").split("Example:", 1)[1].split("\n\n", 1)[0]
    return "example:\n  " + " \\\n    ".join(line.strip() for line in text.strip().splitlines())


def _run(prog: str, verb: Verb, arguments: list[str]) -> None:
    """Parse `arguments` by the verb's signature (its one dataclass, or its parameters) and call it."""
    import jsonargparse

    class Formatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
        pass

    summary = (inspect.getdoc(verb) or "").splitlines()[0]
    parser = jsonargparse.ArgumentParser(
        prog=prog, description=summary, epilog=_example(verb), formatter_class=Formatter, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="Settings from a YAML file; later options override it.")
    parameters = inspect.signature(verb, eval_str=True).parameters
    config = parameters["config"].annotation if "config" in parameters else None
    if config is None:
        parser.add_function_arguments(verb, as_positional="path" in parameters)
    else:
        parser.add_class_arguments(config)
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:  # `--quick` alone means `--quick true`
            action.nargs, action.const = "?", True
    try:
        values = parser.instantiate(parser.parse_args(arguments))
    except argparse.ArgumentError as error:
        raise InputError(f"{' '.join(str(error).split())} (`{prog} --help` lists the options)") from None
    values.pop("config", None)
    if config is None:
        verb(**vars(values))
    else:
        verb(config(**{field.name: values[field.name] for field in fields(config)}))
