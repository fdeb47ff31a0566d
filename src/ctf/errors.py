"""The one exception for user errors, and the words that help to correct them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

#: Names that users of diffusers type, and what to write instead, beginning with our name.
ELSEWHERE = {
    "guidance_scale": "cfg_scale",
    "cfg": "cfg_scale",
    "num_inference_steps": "steps, of the first stage; fine_steps of a stage called fine",
    "generator": "seed, an int or one per label",
    "prompt": "labels, class names or indices",
    "class_labels": "labels, class names or indices",
    "num_images_per_prompt": "labels, one per image: [3] * 4",
    "output_type": "generate for uint8 arrays; a call returns PIL images",
    "images": "the list that a call returns, without .images",
    "torch_dtype": 'compute=Compute("bfloat16") of from_pretrained (from ctf.models import Compute)',
    "device_map": "device of from_pretrained",
    "scheduler": "sampler, order and schedule, settings of a call",
    "callback_on_step_end": "stream, which yields previews",
    "set_progress_bar_config": "progress=True of a call",
    "vae": "tokenizer",
    "unet": "stages",
    "transformer": "stages",
}


class InputError(Exception):
    """User error: something that was given cannot be used.

    The message is one line: what is wrong, where, and what to do instead. The command prints it and
    exits with code 2; library callers can catch it.
    """


def nearest(word: str, choices: Iterable[str]) -> list[str]:
    """The choices that are spelt most like `word`, or whose last part is; none if nothing is like it.

    Args:
        word: as it was typed; of a name of `ELSEWHERE`, ours is looked for.
        choices: such as "loop.seed" or "train stage"; "seed" and "stage" are their last parts.
    """
    word = re.split("[ ,=]", ELSEWHERE.get(word, word))[0]
    named: dict[str, list[str]] = {}
    for choice in sorted(choices):
        for name in {choice, re.split("[. ]", choice)[-1]}:
            named.setdefault(name, []).append(choice)
    return [choice for name in get_close_matches(word, named, n=1) for choice in named[name]]


def did_you_mean(found: Sequence[str], form: str = "{}") -> str:
    """ ": did you mean …?" of the first few, each in this form; empty of none."""
    return f": did you mean {' or '.join(map(form.format, found[:3]))}?" if found else ""


def our_name(name: str) -> str:
    """A sentence that says what to write for a name of `ELSEWHERE`; empty for any other name."""
    return f"no {name} here: use {ELSEWHERE[name]}" if name in ELSEWHERE else ""


def first_line(error: object) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(names: Sequence[str], shown: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
