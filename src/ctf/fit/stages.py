"""How `ctf fit` makes its stages: as those of a model that exists, or from random weights."""

from __future__ import annotations

from ctf.errors import InputError
from ctf.fit.config import NOTHING, FitConfig
from ctf.fit.plan import CLUSTERS, SYSTEMS, StagePlan
from ctf.fit.recipes import Recipe
from ctf.model_folder import Pipeline, is_model
from ctf.models.config import MODEL_SIZES
from ctf.models.next_scale_config import NEXT_SCALE_SIZES
from ctf.sampling.settings import Sampling
from ctf.stages.stage import Stage
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.registry import BUNDLED


def starting_model(config: FitConfig, source: str, tokenizer: Tokenizer) -> tuple[Pipeline | None, str, str]:
    """The model whose stages training starts from, its name, and why: None and "none" for random weights.

    Without --start_from it is the bundled model of the tokenizer, which `source` names.

    Raises:
        InputError: a model that was asked for and does not fit.
    """
    random = "the stages start from random weights"
    if config.start_from == NOTHING:
        return None, NOTHING, f"{random}, as asked"
    if config.start_from is None:
        if source not in BUNDLED or not is_model(BUNDLED[source]):
            return None, NOTHING, f"{random}, since none are bundled for this tokenizer"
        if config.baseline:
            return None, NOTHING, f"{random}, so that the comparison with the baseline is fair"
    start = config.start_from or source
    model = Pipeline.from_pretrained(start, "cpu")
    names = {stage.name for stage in model.stages}
    if missing := [name for name in SYSTEMS["coarse-to-fine"] if name not in names]:
        raise InputError(f"start_from {start}: the model has no stage {missing[0]}: name another, or {NOTHING}")
    sizes = sorted({size_of(stage) for stage in model.stages})
    if config.size is not None and sizes != [config.size]:
        if config.start_from is not None:
            raise InputError(f"start_from {start}: its stages are of size {' and '.join(sizes)}: leave size out")
        return None, NOTHING, f"{random}, since those of {start} are of size {' and '.join(sizes)}"
    for stage in model.stages:
        stage.check_tokenizer(tokenizer)
    return model, start, f"the stages start from those of {start}, with their sizes and sampling settings"


def stages_like(model: Pipeline, names: list[str]) -> dict[str, StagePlan]:
    """Stages of these names, each made as that of the model, or as its first one where it has none of the name."""
    made = {}
    for name in names:
        stage = next((stage for stage in model.stages if stage.name == name), model.stages[0])
        made[name] = StagePlan(size_of(stage), stage.kind, stage.own_settings, stage.sampling)
    return made


def random_stages(recipe: Recipe, size: str, names: list[str]) -> dict[str, StagePlan]:
    """Stages of these names and one size; the first ones are guided as in the paper."""
    guided = Sampling(cfg_scale=2.0, **recipe.sampling)  # its temperature of 1.1 is for models trained for long
    return {
        name: StagePlan(size, recipe.kinds[name], {}, Sampling() if CLUSTERS.get(name) == "given" else guided)
        for name in names
    }


def size_of(stage: Stage) -> str:
    """The name of a stage's size. Raises InputError if it has none."""
    size = tuple(getattr(stage.config, name, None) for name in ("layers", "heads", "dim"))
    for name, known in (MODEL_SIZES | NEXT_SCALE_SIZES).items():
        if known == size:
            return name
    raise InputError(f"the stage {stage.name} to start from has no size of `ctf info sizes`: use `ctf train`")
