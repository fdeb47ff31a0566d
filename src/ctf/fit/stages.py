"""How `ctf fit` makes its stages and clusters: like those of the weights to start from, or anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctf.codebook.clustering import cluster_codebook
from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError
from ctf.fit.config import NOTHING, FitConfig
from ctf.fit.plan import CLUSTERS, Plan, StagePlan
from ctf.fit.recipes import Recipe
from ctf.models.config import MODEL_SIZES
from ctf.models.next_scale_config import NEXT_SCALE_SIZES
from ctf.run_folder import run_settings
from ctf.sampling.settings import Sampling
from ctf.stages.stage import Stage
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.registry import BUNDLED
from ctf.training.start import starting_stages


def brings_tokenizer(start: str) -> bool:
    """Whether what training starts from is a model, and not stages alone."""
    return not Path(start).is_file() and run_settings(Path(start)) is None


def stages_to_start_from(config: FitConfig, source: str, tokenizer: Tokenizer) -> tuple[list[Stage], str, str]:
    """The stages that training starts from, where they are, and why; none and "none" for random weights.

    Without --start_from they are those of the bundled model of the tokenizer, which `source` names.

    Raises:
        InputError: stages that were asked for and do not fit.
    """
    random = "the stages start from random weights"
    if config.start_from == NOTHING:
        return [], NOTHING, f"{random}, as asked"
    if config.start_from is None:
        if source not in BUNDLED:
            return [], NOTHING, f"{random}, since none are bundled for this tokenizer"
        if config.baseline:
            return [], NOTHING, f"{random}, so that the comparison with the baseline is fair"
    start = config.start_from or source
    stages, _ = starting_stages(start)
    sizes = sorted({size_of(stage) for stage in stages})
    if config.size is not None and sizes != [config.size]:
        if config.start_from is not None:
            raise InputError(f"start_from {start}: its stages are of size {' and '.join(sizes)}: leave size out")
        return [], NOTHING, f"{random}, since those of {start} are of size {' and '.join(sizes)}"
    why = f"the stages start from those of {start}, with their sizes and sampling settings"
    for stage in stages:
        if stage.codebook is not None:
            try:
                stage.check_tokenizer(tokenizer)
            except InputError as error:
                raise InputError(f"{error}: give --tokenizer, the one that {start} was trained with") from None
        elif stage.codebook_size == tokenizer.codebook_size:
            why += f". They should be of this tokenizer's codebook, which {start} does not say"
        else:
            why += (
                f". Only blocks and classes are taken: its embeddings are of {stage.codebook_size:,} codewords, the "
                f"tokenizer has {tokenizer.codebook_size:,}. --tokenizer with that of {start} takes them too"
            )
    return stages, start, why


def plan_stages(others: Sequence[Stage], recipe: Recipe, size: str, names: Sequence[str]) -> dict[str, StagePlan]:
    """Stages of these names: like the one of its name in `others`, else the recipe's, of this size.

    One that is given no clusters is like the first of `others`, if that is given none.
    """
    guided = Sampling(cfg_scale=2.0, **recipe.sampling)  # its temperature of 1.1 is for models trained for long
    by_name, made = {stage.name: stage for stage in others}, {}
    for name in names:
        with_clusters = CLUSTERS.get(name) == "given"
        first = others[0] if others and not with_clusters and others[0].given is None else None
        if stage := by_name.get(name, first):
            made[name] = StagePlan(size_of(stage), stage.kind, stage.own_settings, stage.sampling)
        else:
            made[name] = StagePlan(size, recipe.kinds[name], {}, Sampling() if with_clusters else guided)
    return made


def size_of(stage: Stage) -> str:
    """The name of a stage's size. Raises InputError if it has none."""
    size = tuple(getattr(stage.config, name, None) for name in ("layers", "heads", "dim"))
    for name, known in (MODEL_SIZES | NEXT_SCALE_SIZES).items():
        if known == size:
            return name
    raise InputError(f"the stage {stage.name} to start from has no size of `ctf info sizes`: use `ctf train`")


def make_clusters(plan: Plan, tokenizer: Tokenizer) -> CoarseMap:
    """Those of the stages to start from, if they are as many as planned; else made anew."""
    if plan.start_from != NOTHING:
        for stage in starting_stages(plan.start_from)[0]:
            if stage.predicts is not None and stage.predicts.num_coarse == plan.num_clusters:
                return stage.predicts
    return cluster_codebook(tokenizer.codebook, plan.num_clusters, "kmeans", plan.seed)
