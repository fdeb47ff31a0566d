"""`--start_from`: initial weights from a model of another level, other classes or fewer blocks, as far as they fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctf.codebook.coarse_map import CoarseMap, cluster_means
from ctf.errors import InputError, shortened
from ctf.files import is_safetensors, read_metadata
from ctf.images.records import warn
from ctf.interop import llamagen
from ctf.interop.tokenizers import open_tokenizer
from ctf.model_folder import find_model, open_stage, stages_in
from ctf.run_folder import run_settings
from ctf.stages.stage import Stage
from ctf.tokens.token_set import TokenIndex, TokenSet

AS_IT_IS = "as it is"
#: Rows of a parameter, or None if none fit, and how they were made.
Rows = tuple[Tensor | None, str]


def start_stage(stage: Stage, source: str, tokens: TokenSet) -> dict[str, Any]:
    """Copy what fits of another stage's weights into `stage`.

    Parameters of the same name and shape are taken as they are. An embedding or a head of another level becomes one of
    this level: a cluster's row is the mean of its codewords' rows, weighted by how often `tokens` use them, and a
    codeword's row is that of its cluster. Classes are matched by name; new ones start at the mean of all, with a
    warning if all are new and there are as many as before.

    Args:
        stage: with random weights; changed in place.
        source: a stage, a run, a LlamaGen GPT's file, or a model folder or Hub id, of which the stage of the same name
            is taken, else the first.
        tokens: the training tokens.

    Returns:
        How each parameter that fits was made, and the names of those that keep their random start. The run's config
        stores it.

    Raises:
        InputError: `source` does not exist, or no block of it fits.
    """
    stages, class_names = starting_stages(source, getattr(stage.config, "heads", None))
    other = next((other for other in stages if other.name == stage.name), stages[0])
    theirs = {name: parameter.detach() for name, parameter in other.named_parameters()}
    uses = lru_cache(tokens.token_counts)  # called only if needed, and once: it reads all tokens

    def rows_for(name: str) -> Rows:
        role = stage.rows_of.get(name)
        if role == "classes" and name in theirs:
            # As many classes, all called differently: two names for the same ones, such as WordNet's ids and words.
            names = class_names or []
            if len(names) == len(tokens.class_names) and {*names}.isdisjoint(tokens.class_names):
                warn(
                    f"{source} knows none of the {len(tokens.class_names)} classes by name: it has {shortened(names)}; "
                    f"the images have {shortened(tokens.class_names)}. Each starts at the mean of its classes"
                )
            return class_rows(theirs[name], class_names, tokens.class_names)
        if role in ("predicts", "given"):
            return level_rows(name, role, stage, other, theirs, uses)
        return theirs.get(name), AS_IT_IS

    report = copy_rows(stage, rows_for)
    if not any(name not in stage.rows_of for name in report["taken"]):
        raise InputError(f"{source}: no block of it fits this stage: choose the --size that its weights have")
    return {"source": source, "stage": other.name, **report}


def start_tokenizer(tokenizer: nn.Module, source: str) -> dict[str, Any]:
    """Copy the parameters of another tokenizer that have the same name and shape; returns what `start_stage` does.

    Raises:
        InputError: `source` does not exist, or no parameter fits.
    """
    theirs = {name: parameter.detach() for name, parameter in open_tokenizer(source).named_parameters()}
    report = copy_rows(tokenizer, lambda name: (theirs.get(name), AS_IT_IS))
    if not report["taken"]:
        raise InputError(f"{source}: nothing of it fits this tokenizer: take the settings of its model")
    return {"source": source, **report}


def in_words(started: Mapping[str, Any]) -> str:
    """The report of `start_stage` or `start_tokenizer` in a line for the terminal."""
    taken, left = started["taken"], started["left"]
    converted = [f"{name}: {how}" for name, how in taken.items() if how != AS_IT_IS]
    parts = [f"starts from {started['source']}", f"{len(taken) - len(converted)} parameters as they are", *converted]
    if left:
        parts.append(f"not taken: {', '.join(left)}")
    return "; ".join(parts)


@torch.no_grad()
def copy_rows(module: nn.Module, rows_for: Callable[[str], Rows]) -> dict[str, Any]:
    """Fill the parameters that `rows_for` has rows for: {"taken": how, by name; "left": other names}."""
    taken, left = {}, []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:  # frozen ones belong to this stage's tokenizer
            continue
        ours: Tensor = parameter
        rows, how = rows_for(name)
        if rows is not None and how != AS_IT_IS and len(ours) - len(rows) in (-1, 1):
            fewer = min(len(ours), len(rows))  # a masked stage has one row more than labels, the mask token's
            ours, rows = ours[:fewer], rows[:fewer]
        if rows is None or rows.shape != ours.shape:
            left.append(name)
            continue
        ours.copy_(rows)
        taken[name] = how
    return {"taken": taken, "left": left}


def starting_stages(source: str, heads: int | None = None) -> tuple[list[Stage], list[str] | None]:
    """All stages of what `--start_from` takes, and the names of their classes if they are known.

    `heads` are those of a LlamaGen GPT of a size that is none of `ctf info sizes`, since its file does not say them.

    Raises:
        InputError: `source` does not exist, or is nothing of the kind.
    """
    path = Path(source)
    if path.is_file() and not (is_safetensors(path) and "ctf" in read_metadata(path)):
        return [llamagen.load_gpt(path, heads)], None
    if path.is_file():
        return [open_stage(path)], None
    if path.is_dir() and (settings := run_settings(path)) is not None:
        index = Path(settings.get("tokens") or "") / "index.json"
        return [open_stage(path)], TokenIndex.load(index.parent).class_names if index.exists() else None
    return stages_in(find_model(source))


def class_rows(rows: Tensor, names: Sequence[str] | None, wanted: Sequence[str]) -> Rows:
    """Rows of classes (C + 1, dim), the last one unconditional, for the `wanted` classes; by number without names."""
    if names is None and len(wanted) == len(rows) - 1:
        return rows, f"{len(wanted)} classes by number, since the source has no names"
    names = names or []
    places = {name: place for place, name in enumerate(names)}
    mean = rows[:-1].mean(0)
    found = [rows[places[name]] if name in places else mean for name in wanted]
    known = sum(name in places for name in wanted)
    return torch.stack([*found, rows[-1]]), f"{known} of {len(wanted)} classes by name, the others at the mean"


def level_rows(
    name: str, role: str, stage: Stage, other: Stage, theirs: Mapping[str, Tensor], uses: Callable[[], Tensor]
) -> Rows:
    """Rows of the labels of a level of `stage`, from those of `other`; rows of given labels also from predicted
    ones."""
    if other.codebook_size != stage.codebook_size or len({other.codebook, stage.codebook} - {None}) > 1:
        return None, "of another codebook"
    if name in theirs:
        found, level = theirs[name], getattr(other, role)
    else:
        source = next((n for n, r in other.rows_of.items() if r == "predicts" and n in theirs), None)
        if source is None or role == "predicts":
            return None, ""
        found, level = theirs[source], other.predicts
    return convert_rows(found, level, getattr(stage, role), uses)


def convert_rows(rows: Tensor, level: CoarseMap | None, wanted: CoarseMap | None, uses: Callable[[], Tensor]) -> Rows:
    """Rows (labels of `level`, dim) → rows (labels of `wanted`, dim). The level None is that of the codebook's tokens.

    So are a head's biases (labels,). `uses` returns the counts of tokens (K,).
    """
    if level is wanted or (level and wanted and torch.equal(level.fine_to_coarse, wanted.fine_to_coarse)):
        return rows, "of the same level"
    either = wanted if level is None else level
    assert either is not None
    if len(rows) < (either.num_fine if level is None else level.num_coarse):
        return None, ""  # a masked stage that reads no labels has a mask token only
    each = rows[: either.num_fine] if level is None else rows[level.fine_to_coarse]
    if wanted is None:
        return each, "each token as its cluster"
    clusters, counts = wanted.fine_to_coarse, uses().double()
    used = clusters.bincount(counts)[clusters] > 0
    weights = counts.where(used, 1.0)  # the plain mean for a cluster that no token uses
    means = cluster_means(each.reshape(len(each), -1), clusters, weights).view(-1, *each.shape[1:])
    return means, "each cluster as the mean of its tokens, weighted by use"
