"""`--start_from`: what is taken of other weights, against the rows that brute force makes."""

import dataclasses
import json

import pytest
import torch
from tiny_runs import COARSE_MAP, make_image_set, make_token_objective, make_token_set, run, tokenizer_training

from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.interop.llamagen import export_gpt
from ctf.interop.tokenizers import open_tokenizer
from ctf.tokenizer import VQTokenizer
from ctf.training.config import OptimizerConfig
from ctf.training.start import convert_rows, copy_rows, start_stage, start_tokenizer
from ctf.training.tokenizer_objective import TokenizerObjective

TOKENS, HEAD, GIVEN, CLASSES = (
    f"transformer.{name}.weight" for name in ("token_embedding", "head", "given_embedding", "label_embedding")
)


def random_stage(tokens, name="baseline", **settings):
    """A stage in which no two weights are equal."""
    stage = make_token_objective(tokens, name, **settings).module
    for number, parameter in enumerate(stage.parameters()):
        torch.nn.init.normal_(parameter.data, generator=torch.Generator().manual_seed(number + 100 * len(name)))
    return stage


def saved(stage, tmp_path):
    stage.save(tmp_path / f"{stage.name}.safetensors")
    return str(tmp_path / f"{stage.name}.safetensors")


def mean_of_members(rows, tokens):
    """One token of the set at a time: each cluster's mean over the tokens that occur in it."""
    found = [[] for _ in range(COARSE_MAP.num_coarse)]
    for token in tokens.gather(range(len(tokens))).flatten().tolist():
        found[COARSE_MAP.fine_to_coarse[token]].append(rows[token])
    return torch.stack([torch.stack(each).mean(0) for each in found])


def test_a_coarse_stage_starts_from_a_baseline(tokens, tmp_path):
    baseline, coarse = random_stage(tokens), random_stage(tokens, "coarse")
    report = start_stage(coarse, saved(baseline, tmp_path), tokens)
    theirs, ours = dict(baseline.named_parameters()), dict(coarse.named_parameters())
    for name in ours.keys() - {TOKENS, HEAD}:
        assert torch.equal(ours[name], theirs[name]), name
    for name in (TOKENS, HEAD):
        torch.testing.assert_close(ours[name], mean_of_members(theirs[name].detach(), tokens))
    assert report["left"] == []


def test_a_fine_stage_starts_from_a_baseline_and_from_a_fine_one_of_other_clusters(tokens, tmp_path):
    baseline, fine = random_stage(tokens), random_stage(tokens, "fine")
    report = start_stage(fine, saved(baseline, tmp_path), tokens)
    theirs, ours = dict(baseline.named_parameters()), dict(fine.named_parameters())
    assert torch.equal(ours[HEAD], theirs[HEAD])
    torch.testing.assert_close(ours[GIVEN], mean_of_members(theirs[TOKENS].detach(), tokens))
    assert report["left"] == []

    finer = CoarseMap(torch.arange(16) % 8, "test", 0, "none")
    other = random_stage(tokens, "fine", given=finer)
    start_stage(other, saved(fine, tmp_path), tokens)
    rows = dict(other.named_parameters())[GIVEN]
    assert torch.equal(rows[3], ours[GIVEN][3])  # clusters 3 and 7 of eight lie in cluster 3 of four
    assert torch.equal(rows[7], ours[GIVEN][3])


def test_a_baseline_starts_from_a_coarse_stage(tokens, tmp_path):
    coarse, baseline = random_stage(tokens, "coarse"), random_stage(tokens)
    start_stage(baseline, saved(coarse, tmp_path), tokens)
    for name in (TOKENS, HEAD):
        expected = dict(coarse.named_parameters())[name][COARSE_MAP.fine_to_coarse]
        assert torch.equal(dict(baseline.named_parameters())[name], expected)


def test_a_masked_stage_keeps_its_row_for_hidden_labels(tokens, tmp_path):
    baseline = random_stage(tokens)
    masked = random_stage(tokens, "fine", given=None, rounds="any")
    before = dict(masked.named_parameters())[TOKENS][16].clone()
    start_stage(masked, saved(baseline, tmp_path), tokens)
    rows = dict(masked.named_parameters())[TOKENS]
    assert torch.equal(rows[:16], dict(baseline.named_parameters())[TOKENS])
    assert torch.equal(rows[16], before)


def make_run(folder, class_names):
    """A stage in the folder of its training on these classes."""
    trained = random_stage(make_token_set(folder / "cats", class_names=class_names))
    (folder / "run").mkdir()
    trained.save(folder / "run" / "model.safetensors")
    (folder / "run" / "config.json").write_text(json.dumps({"loop": {}, "tokens": str(folder / "cats")}))
    return trained


def test_classes_are_matched_by_name_and_new_ones_start_at_the_mean(tmp_path):
    trained, dogs = make_run(tmp_path, ["cat", "dog"]), make_token_set(tmp_path / "dogs", class_names=["bird", "cat"])
    stage = random_stage(dogs)
    report = start_stage(stage, str(tmp_path / "run"), dogs)
    theirs, ours = (dict(s.named_parameters())[CLASSES] for s in (trained, stage))
    torch.testing.assert_close(ours, torch.stack([theirs[:2].mean(0), theirs[0], theirs[2]]))
    assert report["taken"][CLASSES] == "1 of 2 classes by name, the others at the mean"


@pytest.mark.parametrize(
    ("names", "said"),
    [(["cat", "bird"], []), (["n1", "n2", "n3"], []), (["n1", "n2"], ["it has cat, dog; the images have n1, n2"])],
)
def test_that_no_class_is_known_by_name_is_a_warning(tmp_path, recwarn, names, said):
    make_run(tmp_path, ["cat", "dog"])
    tokens = make_token_set(tmp_path / "others", class_names=names)
    start_stage(random_stage(tokens), str(tmp_path / "run"), tokens)
    found = [str(warning.message) for warning in recwarn if "classes by name" in str(warning.message)]
    assert [part in text for part, text in zip(said, found, strict=True)] == [True] * len(said)


def test_a_coarse_stage_starts_from_llamagens_file(tokens, tmp_path):
    baseline, coarse = random_stage(tokens), random_stage(tokens, "coarse")
    export_gpt(baseline, tmp_path / "c2i.pt")
    start_stage(coarse, str(tmp_path / "c2i.pt"), tokens)
    theirs, ours = dict(baseline.named_parameters()), dict(coarse.named_parameters())
    assert torch.equal(ours[CLASSES], theirs[CLASSES])  # by number: the file has no names
    torch.testing.assert_close(ours[HEAD], mean_of_members(theirs[HEAD].detach(), tokens))


def test_blocks_are_taken_and_rows_of_another_codebook_are_not(tmp_path):
    codebook = torch.randn(16, 4)
    elsewhere = make_token_set(tmp_path / "elsewhere", codebook=codebook)
    other = random_stage(elsewhere, size=(1, 2, 32))
    ours = make_token_set(tmp_path / "ours", codebook=codebook + 1)
    stage = random_stage(ours)
    report = start_stage(stage, saved(other, tmp_path), ours)
    assert {TOKENS, HEAD} <= set(report["left"])
    assert all(
        ("blocks.1" in name) == (name in report["left"]) for name, _ in stage.named_parameters() if "blocks" in name
    )


def test_weights_without_a_fitting_block_are_refused(tokens, tmp_path):
    source = saved(random_stage(tokens, size=(2, 2, 48)), tmp_path)
    with pytest.raises(InputError, match=r"baseline\.safetensors: no block of it fits.*--size"):
        start_stage(random_stage(tokens), source, tokens)
    with pytest.raises(InputError, match="no/such/place"):
        start_stage(random_stage(tokens), "no/such/place", tokens)


def test_a_run_starts_from_weights_once_and_says_so_in_its_config(tokens, tmp_path, capsys):
    baseline = random_stage(tokens)
    source = saved(baseline, tmp_path)
    steps = {"checkpoint_every": 1, "batch_size": 8}
    still = OptimizerConfig(learning_rate=1e-12, final_learning_rate=0.0, weight_decay=0.0)

    def objective():
        made = make_token_objective(tokens, "coarse", held_out=tokens)
        made.start_from = source
        return made

    first = objective()
    run(first, tmp_path / "run", still, steps=2, **steps)
    assert torch.equal(dict(first.module.named_parameters())[CLASSES], dict(baseline.named_parameters())[CLASSES])
    assert "not taken" not in (message := capsys.readouterr().err)
    assert message.count("starts from") == 1
    started = json.loads((tmp_path / "run" / "config.json").read_text())["started"]
    assert started["source"] == source
    (tmp_path / "baseline.safetensors").unlink()
    run(objective(), tmp_path / "run", still, steps=3, resume=True, **steps)
    assert "starts from" not in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["started"] == started


def test_a_tokenizer_keeps_the_codebook_that_it_starts_from(tmp_path):
    config = tokenizer_training(discriminator_weight=0.0)
    torch.manual_seed(5)
    trained = VQTokenizer(config.model)
    trained.save(tmp_path / "tokenizer.safetensors")
    config = tokenizer_training(discriminator_weight=0.0, start_from=str(tmp_path / "tokenizer.safetensors"))
    objective = TokenizerObjective(config, 30, make_image_set(), None)
    report = objective.started = objective.start()
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), objective.module.parameters(), strict=True))
    assert report["left"] == []
    assert "codebook_loss" in objective.loss(objective.module, next(objective.batches(2, 0, 0, 1, 0)), 0)[1]
    objective.before_step(None, config.warmup_without_codebook)  # where k-means would begin
    assert torch.equal(objective.module.quantizer.weight, trained.quantizer.weight)


def test_it_keeps_the_codebook_when_it_is_resumed_too(tmp_path):
    """Stopped before the step at which k-means would begin."""
    VQTokenizer(tokenizer_training().model).save(tmp_path / "tokenizer.safetensors")
    config = tokenizer_training(discriminator_weight=0.0, start_from=str(tmp_path / "tokenizer.safetensors"))

    for steps in 1, 4:
        objective = TokenizerObjective(config, steps, make_image_set(), None)
        run(objective, tmp_path / "run", steps=steps, checkpoint_every=1, resume=True)
    start = open_tokenizer(str(tmp_path / "tokenizer.safetensors")).codebook
    assert (objective.module.codebook - start).abs().max() < 0.1


def test_a_codebook_of_another_size_is_not_taken(tmp_path):
    model = tokenizer_training().model
    VQTokenizer(model).save(tmp_path / "tokenizer.safetensors")
    other = VQTokenizer(dataclasses.replace(model, codebook_size=64))
    assert start_tokenizer(other, str(tmp_path / "tokenizer.safetensors"))["left"] == ["quantizer.weight"]


def test_frozen_parameters_are_not_taken():
    """A next-scale stage holds its tokenizer's convolutions: those of another tokenizer would be wrong in it."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).requires_grad_(False))
    before = module[1].weight.clone()
    report = copy_rows(module, lambda name: (torch.zeros_like(dict(module.named_parameters())[name]), "as it is"))
    assert sorted(report["taken"]) == ["0.bias", "0.weight"]
    assert report["left"] == []
    assert torch.equal(module[1].weight, before)


def test_a_parameter_of_a_single_number_is_taken():
    module = torch.nn.ParameterDict({"scale": torch.nn.Parameter(torch.tensor(1.0))})
    assert copy_rows(module, lambda _: (torch.tensor(3.0), "as it is"))["taken"] == {"scale": "as it is"}
    assert module["scale"].item() == 3


def test_a_bias_is_averaged_as_the_rows_of_its_head_are():
    coarse_map = CoarseMap(torch.tensor([0, 0, 1, 1]), "kmeans", 0, "")
    means, _ = convert_rows(torch.tensor([0.0, 2.0, 4.0, 8.0]), None, coarse_map, lambda: torch.tensor([1, 3, 0, 0]))
    assert means.tolist() == [1.5, 6.0]  # no token uses the second cluster
