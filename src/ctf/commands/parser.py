"""From a table of functions to a command line: overview, help, options, config files."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, TypeVar, get_args, get_origin

import ctf
from ctf.classes import is_number
from ctf.commands.kind_options import add_options, option_values, settings_of_kinds, training_of
from ctf.errors import InputError, did_you_mean, nearest
from ctf.layout import Layout
from ctf.sampling.settings import SETTINGS

Verb = Callable[..., None]
#: Each verb, and the verbs under it if it is a group. A verb's module is imported when the verb is asked for.
Verbs = Mapping[str, Sequence[str]]

Settings = TypeVar("Settings")
#: What jsonargparse raises of options and files that do not fit.
UNPARSABLE = (argparse.ArgumentError, ValueError, TypeError, RecursionError)

#: A parameter of this name takes every option that the verb does not have: `--top_k 5` is `--sampling.top_k 5`.
OPEN = "sampling"

#: A required parameter of such a name is given without `--`: `ctf info PATH`.
POSITIONAL = {"path", "name"}

#: Short names of options, and names that one verb has in place of another's.
ALSO = {"dtype": "precision", "precision": "dtype", "lr": "learning_rate", "lpips": "perceptual_source"}

#: Options that have no effect unless another is on, or has one value.
NEEDS = {
    "held_out_split": "held_out",
    "weights": "features",
    "network": "lpips",
    "num": "model",
    "crop_ranges": "augmentation=ten-crop",
    "scales": "family=multi-scale",
    "support": "given",
    "perceptual_source": "perceptual_weight",
    "discriminator_start": "discriminator_weight",
    "adaptive_weight": "discriminator_weight",
}

#: How an option begins: with a dash, where no number does.
OPTION = r"-(?![\d.]|$)"


def dispatch(verbs: Verbs, essentials: Mapping[str, str], arguments: list[str]) -> None:
    """Find the verb that `arguments` begin with, parse the rest by its signature, and call it.

    Each function's docstring gives its help: the first line, an "Example:" and "Args:". Only the chosen verb's
    parser is built, so help is fast however many verbs there are.

    Args:
        verbs: the table of verbs.
        essentials: options that `--help` shows, by verb or group; `--help-all` shows all. A verb without an entry
            always shows all.
        arguments: what was typed behind `ctf`.

    Raises:
        InputError: no such verb, or options that do not fit.
        SystemExit: after `--print_config`.
    """
    words: list[str] = []
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    choices: Collection[str] = verbs
    while choices:
        if not arguments or arguments[0] in ("-h", "--help", "--help-all", "--help_all"):
            print(_overview(words, verbs))
            return
        word, *arguments = arguments
        if word == "--version" and not words:
            print(f"ctf {ctf.__version__}")
            return
        if word not in choices:
            known = choices if words else [*verbs, *(f"{verb} {name}" for verb in verbs for name in verbs[verb])]
            hint = did_you_mean(nearest(word, known)) or f": choose one of {', '.join(choices)}"
            raise InputError(f"`{' '.join(['ctf', *words, word])}` does not exist{hint}")
        choices = () if words else verbs[word]
        words.append(word)
    _run(" ".join(["ctf", *words]), load_verb(words), essentials.get(words[0], "").split(), arguments)


def load_verb(words: Sequence[str]) -> Verb:
    """The function behind a verb, such as `ctf.commands.convert.to_codes` of ("convert", "to-codes")."""
    return getattr(import_module(f"ctf.commands.{words[0]}"), words[-1].replace("-", "_"))


def _overview(words: list[str], verbs: Verbs) -> str:
    """The text of `ctf --help` and `ctf train --help`."""
    usage = " ".join(["ctf", *words])
    lines = [f"usage: {usage} VERB [options]", ""]
    if not words:
        lines += ["Coarse-to-fine autoregressive image generation.", ""]
    choices = [[*words, name] for name in (verbs[words[0]] if words else verbs)]
    for choice in choices:
        group = () if words else verbs[choice[0]]
        lines.append(f"  {choice[-1]:12}{', '.join(group) or (load_verb(choice).__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", f"`{usage} VERB --help` explains each.", "", _example(load_verb(choices[0]))])


def _example(verb: Verb) -> str:
    """The verb's example, a shell command that may span lines."""
    text = (inspect.getdoc(verb) or "").split("Example:", 1)[1].split("\n\n", 1)[0]
    return "example:\n  " + " \\\n    ".join(line.strip() for line in text.strip().splitlines())


def _run(prog: str, verb: Verb, essentials: Sequence[str], arguments: list[str]) -> None:
    """Parse `arguments` by the verb's signature (its one dataclass, or its parameters) and call it.

    Options may be written with dashes or underscores, `--dry-run`, `--dry_run`, and without their group where no other
    ends alike: `--seed` is `--loop.seed`.
    """
    import jsonargparse

    parameters = inspect.signature(verb, eval_str=True).parameters
    config = parameters["config"].annotation if "config" in parameters else None
    kinds = settings_of_kinds(config, arguments)
    parser = _parser_of(prog, verb, config, kinds)
    arguments = [re.sub("(?<=^--)[^=]+", lambda name: _in_full(parser, name[0]), word) for word in arguments]
    if asked := {"-h", "--help", "--help_all"}.intersection(arguments):
        print(_help(parser, essentials if "--help_all" not in asked else ()))
        return
    arguments = _options_as_words(parser, arguments)
    arguments = _checked_options(parser, arguments, SETTINGS if OPEN in parameters else ())
    try:
        parsed = parser.parse_args(arguments)
        for group in {action.dest.split(".")[0] for action in parser._actions if "." in action.dest}:
            if not isinstance(parsed[group], jsonargparse.Namespace):
                raise ValueError(f"{group} is {parsed[group]!r}: give its settings one by one")
        for name, value in parsed.items():
            if "\0" in str(value):
                raise ValueError(f"{name} holds a zero byte: no file has such a name")
            if str(value).startswith("~/"):
                raise ValueError(f"{name} {value}: ~ is not expanded here: write the whole path")
        values = parser.instantiate(parsed)
    except UNPARSABLE as error:
        files = option_values(arguments, "config")
        read = f"with the settings in {', '.join(files)}; " if files else ""
        raise InputError(f"{_plain(str(error), parser)} ({read}`{prog} --help-all` lists the options)") from None
    values.pop("config", None)
    _check_needs(vars(values), parser.get_defaults())
    if config is None:
        verb(**vars(values))
    else:
        verb(training_of(config, values, kinds))


def _check_needs(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise InputError if an option of `NEEDS` is given without the one that it needs."""
    for name, condition in NEEDS.items():
        other, _, value = condition.partition("=")
        if not {name, other} <= values.keys() or values[name] == defaults[name]:
            continue
        if values[other] != value if value else not values[other]:
            raise InputError(f"{name} has no effect without {condition.replace('=', ' ')}: give both, or neither")


@lru_cache  # building one takes most of the time of a short command, and a process may run many
def _parser_of(prog: str, verb: Verb, config: type | None, kinds: tuple[type, ...]) -> Any:
    """The parser of a verb; `config` is the dataclass that the verb takes, if it takes one."""
    import jsonargparse

    class Formatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
        pass

    summary = (inspect.getdoc(verb) or "").splitlines()[0]
    parser = _new_parser(prog=prog, description=summary, epilog=_example(verb), formatter_class=Formatter)
    parser.add_argument("--config", action="config", help="Settings from a YAML file; later options override it.")
    parser.add_argument("--help_all", action="help", help="Show all options and exit.")
    parameters = inspect.signature(verb, eval_str=True).parameters
    if config is None:
        parser.add_function_arguments(verb, as_positional=not POSITIONAL.isdisjoint(parameters))
    else:
        add_options(parser, config, kinds)
    general = parser._action_groups.pop(1)  # --help and --config come last
    parser._action_groups[1].title = "arguments"
    parser._action_groups.append(general)
    for action in parser._actions:
        if _is_flag(action):  # for the help: [--quick [QUICK]]
            action.nargs = "?"
        elif _items(action):
            action.metavar = f"{action.dest.split('.')[-1].upper()} ..."
    return parser


def _in_full(parser: argparse.ArgumentParser, name: str) -> str:
    """An option's name: of `seed` that of the one option that ends so, `loop.seed`; others as they are."""
    name = name.replace("-", "_")
    known = [action.dest for action in parser._actions if action.option_strings]
    same = [dest for dest in known if dest.split(".")[-1] in (name, ALSO.get(name))]
    return same[0] if name not in known and len(same) == 1 else name


def _help(parser: argparse.ArgumentParser, essentials: Collection[str]) -> str:
    """The help of a verb: all options, or what is required, `essentials` and how to see the others."""
    required = [action for action in parser._actions if action.required]
    words = [f"{action.option_strings[0]} …" if action.option_strings else action.dest.upper() for action in required]
    parser.usage = " ".join(["%(prog)s", *words, "[options]"])
    shown = {"help", "help_all", *essentials, *(action.dest for action in required)}
    if not essentials:
        shown = {action.dest for action in parser._actions} - {"help_all"}
    hidden = {action: action.help for action in parser._actions if action.dest not in shown}
    for action in hidden:
        action.help = argparse.SUPPRESS
    text = parser.format_help()
    for action, kept in hidden.items():
        action.help = kept
    return text


def read_settings(config: type[Settings], path: str, **absent: Any) -> Settings:
    """The settings in a YAML file, as the verb that takes this dataclass reads them with `--config`.

    Args:
        config: the dataclass.
        path: the file.
        absent: values for what the file may leave out although the verb needs it.

    Raises:
        InputError: no such file, or settings that are none of the dataclass or without meaning.
    """
    parser = _new_parser()
    parser.add_argument("--config", action="config")
    kinds = settings_of_kinds(config, ["--config", path])
    add_options(parser, config, kinds)
    parser.set_defaults(absent)
    try:
        values = parser.instantiate(parser.parse_args(["--config", path]))
    except UNPARSABLE as error:
        raise InputError(f"{_plain(str(error), parser)} (with the settings in {path})") from None
    return training_of(config, values, kinds)


def _new_parser(**arguments: Any) -> Any:
    """A parser of options and YAML files, to which a `Layout` is text or lists."""
    import jsonargparse
    from jsonargparse.typing import register_type

    register_type(Layout, str, Layout, (InputError,), fail_already_registered=False)
    return jsonargparse.ArgumentParser(exit_on_error=False, **arguments)


def _plain(message: str, parser: argparse.ArgumentParser) -> str:
    """A message of jsonargparse in the words of a command line instead of Python's."""
    message = re.sub(r'^Parser key "(.+?)":', r"\1:", " ".join(message.split()))
    inner = "(?:(?!Does not validate).)*?"  # unions within unions come first
    union = f"Does not validate {inner} Errors: - ({inner}) Given value type: .*? Given value:"
    while re.search(union, message):
        message = re.sub(union, lambda found: f"{found[1].replace(' - Expected a', ' or')}. Got value:", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    positional = {action.dest for action in parser._actions if not action.option_strings}
    if found := re.search("arguments are required: (.*)", message):
        names = found[1].split(", ")
        message = f"needs {', '.join(name if name in positional else f'--{name}' for name in names)}"
    words = {"typing.Literal": "one of ", "NoneType": "null", "Expected a ": "expected ", ". Got value:": ", got"}
    for seen, plain in words.items():
        message = message.replace(seen, plain)
    if found := re.search(r"(?:Group '([\w.]+)' does not accept o|O)ption '(\w+)'", message):
        wrong = ".".join(filter(None, found.groups()))
        known = {action.dest for action in parser._actions}
        if OPEN in known:
            known |= {f"{OPEN}.{setting}" for setting in SETTINGS}
        message += did_you_mean(nearest(wrong, known))
    return message


def _options_as_words(parser: argparse.ArgumentParser, arguments: list[str]) -> list[str]:
    """Write a list, `--steps 1 4 16`, as one word, `--steps=[1, 4, 16]`, and a flag, `--quick`, as `--quick=true`.

    A list takes all words up to the next option. It leaves the last one to a verb that lacks its positional argument,
    unless that word would do for the list: `ctf plan --stages coarse fine settings.yaml`. So does a flag.
    """
    options = {name: action for action in parser._actions for name in action.option_strings}
    groups: list[list[str]] = [[""]]  # an option and the words behind it; none before the first group
    for word in arguments:
        if re.match(OPTION, word):
            groups.append([])
        groups[-1].append(word)
    taken = []
    for name, *words in groups:
        action = options.get(name)
        most = len(words) if _items(action) else int(bool(name) and "=" not in name)
        taken.append(min(most, len(words)))
    positional = any(not action.option_strings for action in parser._actions)
    if positional and all(take == len(words) for take, (_, *words) in zip(taken, groups, strict=True)):
        for i, (name, *words) in reversed([*enumerate(groups)]):
            action = options.get(name)
            if taken[i] > bool(_items(action)) and not _fits(action, words[-1]):
                taken[i] -= 1
                break
    read = []
    for take, (name, *words) in zip(taken, groups, strict=True):
        option, equals, text = name.partition("=")
        items = _items(options.get(option))
        if items and (equals or take):
            name = f"{option}={_list_text([text] if equals else words[:take], items)}"
            words = words[take:]
        elif _is_flag(options.get(name)) and not take:
            name += "=true"
        read += [name, *words]
    return read[1:]


def _items(action: argparse.Action | None) -> set[Any]:
    """The types of a list option's items: {str, int} of `list[str | int] | None`, the words of a Literal; else none."""
    hint = getattr(action, "_typehint", None)
    items = {item for kind in (hint, *get_args(hint)) if get_origin(kind) in (list, tuple) for item in get_args(kind)}
    return {kind for item in items for kind in (get_args(item) or [item])} - {...}


def _is_flag(action: argparse.Action | None) -> bool:
    hint = getattr(action, "_typehint", None)
    return hint is bool or bool in get_args(hint)


def _fits(action: argparse.Action | None, word: str) -> bool:
    """True if a word is a value of this option. Only a list or a flag may do without its last word."""
    items = _items(action)
    if items:
        return str in items or word in items or (not items.isdisjoint({int, float}) and _is_float(word))
    return not _is_flag(action) or word.lower() in ("true", "false", "null")


def _is_float(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _list_text(words: list[str], items: set[Any]) -> str:
    """The words of a list in the form that jsonargparse reads; words in brackets are YAML.

    Texts stay as they are typed, where YAML would take `no` for false and `1e3` for a number. In a list that may hold
    numbers too, a whole number is one, unless it stands in quotes within the brackets.
    """
    import yaml

    text, whole = " ".join(words), int in items
    if text == "null":
        return text
    if not (text.startswith("[") and text.endswith("]")):
        if str not in items:
            return f"[{', '.join(word if _is_float(word) else json.dumps(word) for word in words)}]"
        return json.dumps([int(word) if whole and is_number(word) else word for word in words], ensure_ascii=False)
    try:
        node = yaml.compose(text) if str in items else None
    except yaml.YAMLError:
        return text  # jsonargparse says what is wrong
    if not isinstance(node, yaml.SequenceNode) or not all(isinstance(n, yaml.ScalarNode) for n in node.value):
        return text
    values = [int(n.value) if whole and n.style is None and is_number(n.value) else n.value for n in node.value]
    return json.dumps(values, ensure_ascii=False)


def _checked_options(parser: argparse.ArgumentParser, arguments: list[str], settings: Collection[str]) -> list[str]:
    """Write those of `settings` and those of later stages, `--fine_top_k`, as entries of the open parameter.

    Raises:
        InputError: an option that does not exist.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    read: list[str] = []
    for word in arguments:
        if word == "--":  # no options follow
            return read + arguments[len(read) :]
        option, *value = word.split("=", 1)
        if re.match(OPTION, word) and option not in known:
            option = option.replace(f"--{OPEN}.", "--") if settings else option
            stages = ["", *(option[2 : mark.end()] for mark in re.finditer("_", option))]
            possible = {f"--{stage}{setting}" for stage in stages for setting in settings}
            if option not in possible:
                similar = nearest(option.lstrip("-"), [name.lstrip("-") for name in known | possible])
                hint = did_you_mean(similar, "--{}") or f" (`{parser.prog} --help-all` lists the options)"
                raise InputError(f"`{parser.prog}` has no option {option}{hint}")
            word = "=".join([f"--{OPEN}.{option[2:]}", *value])
        read.append(word)
    return read
