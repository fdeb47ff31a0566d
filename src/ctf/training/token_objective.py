"""The three objectives over stored tokens: baseline (eq. 4), coarse (eq. 9) and fine (eq. 10)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError
from ctf.images.pixels import to_bytes
from ctf.images.sheet import contact_sheet
from ctf.models.cluster_head import ClusterMembers
from ctf.models.config import TransformerConfig
from ctf.models.likelihood import bits, token_losses, token_scores
from ctf.models.transformer import Transformer
from ctf.sampling.decode import generate_tokens
from ctf.sampling.fine import Support, refine_tokens
from ctf.tokenizer.vq_tokenizer import VQTokenizer
from ctf.tokens.token_set import TokenBatches, TokenSet
from ctf.training.objective import Batch, Objective

Stage = Literal["baseline", "coarse", "fine"]

SHEET_COLUMNS = 8


class TokenObjective(Objective):
    """Train one of the three models on a token set.

    Args:
        stage: which model.
        size: a name in `MODEL_SIZES`.
        tokens: training tokens.
        held_out: tokens to evaluate on.
        coarse_map: the clusters; not for a baseline.
        support: of a fine model.
        tokenizer: paints contact sheets.
        settings: `dropout` and `class_dropout` of the Transformer.

    Raises:
        InputError: tokens, map and tokenizer that do not belong together, or an unknown size.
    """

    def __init__(
        self,
        stage: Stage,
        size: str,
        tokens: TokenSet,
        held_out: TokenSet | None = None,
        coarse_map: CoarseMap | None = None,
        support: Support = "cluster",
        tokenizer: VQTokenizer | None = None,
        **settings: float,
    ) -> None:
        if stage != "baseline" and coarse_map is None:
            raise InputError(f"the {stage} model needs a coarse map: make one with `ctf cluster`")
        if coarse_map is not None and coarse_map.num_fine != tokens.codebook_size:
            raise InputError(
                f"{tokens.folder} holds tokens of a codebook of {tokens.codebook_size}, the coarse map is for "
                f"{coarse_map.num_fine}: cluster the codebook that made the tokens"
            )
        if coarse_map is not None and tokens.fingerprint_of_codebook not in (None, coarse_map.codebook_fingerprint):
            raise InputError(f"{tokens.folder} and the coarse map belong to different codebooks: cluster again")
        if held_out is not None and (held_out.codebook_size, held_out.grid, held_out.class_names) != (
            tokens.codebook_size,
            tokens.grid,
            tokens.class_names,
        ):
            raise InputError(f"{held_out.folder} differs from {tokens.folder} in codebook size, grid or classes")
        fingerprints = {part.fingerprint_of_codebook for part in (tokens, held_out) if part is not None}
        if held_out is not None and len(fingerprints - {None}) > 1:
            raise InputError(f"{tokens.folder} and {held_out.folder} belong to different codebooks: tokenize again")
        if tokenizer is not None:
            tokens.check_codebook(tokenizer.codebook)
        fine, coarse = tokens.codebook_size, coarse_map.num_coarse if coarse_map else 0
        vocabularies = {"baseline": (fine, fine), "coarse": (coarse, coarse), "fine": (coarse, fine)}
        self.stage, self.support = stage, support
        self.tokens, self.held_out, self.coarse_map, self.tokenizer = tokens, held_out, coarse_map, tokenizer
        self.num_images = len(tokens)
        self.extra = {}
        self.module = Transformer(
            TransformerConfig.of_size(
                size,
                input_vocab=vocabularies[stage][0],
                output_vocab=vocabularies[stage][1],
                grid=tokens.grid,
                num_classes=tokens.num_classes,
                attention="full" if stage == "fine" else "causal",
                **settings,
            )
        )
        self._members: ClusterMembers | None = None

    def batches(self, batch_size: int, seed: int, rank: int, world: int, start: int) -> Iterator[Batch]:
        batches = TokenBatches(self.tokens, batch_size, seed, rank, world)
        while True:
            yield batches[start]
            start += 1

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return token_losses(module, *self._problem(*batch)).mean(), {}

    def _problem(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, ClusterMembers | None]:
        """What `token_losses` takes for this stage: inputs, labels, targets and the members."""
        if self.coarse_map is None or self.stage == "baseline":
            return tokens, labels, tokens, None
        coarse = self.coarse_map.fine_to_coarse.to(tokens.device)[tokens]
        if self.stage == "coarse":
            return coarse, labels, coarse, None
        if self.support == "cluster" and self._members is None:
            self._members = ClusterMembers.of(self.coarse_map, tokens.device)
        return coarse, labels, tokens, self._members

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Mean loss in nats and bits per token of this stage, and token accuracy, without augmentation."""
        if self.held_out is None:
            return {}
        device = next(module.parameters()).device
        nats = hits = 0.0
        for start in range(0, len(self.held_out), 64):
            images = range(start, min(start + 64, len(self.held_out)))
            tokens, labels = self.held_out.gather(images), torch.from_numpy(self.held_out.labels[images])
            losses, right = token_scores(module, *self._problem(tokens.to(device), labels.to(device)))
            nats += losses.double().sum().item()
            hits += right.double().sum().item()
        count = len(self.held_out) * self.held_out.num_tokens
        figures = {"loss": nats / count, "bits_per_token": bits(nats / count), "accuracy": hits / count}
        return {f"held_out/{name}": value for name, value in figures.items()}

    def sheet(self, module: Any) -> Image.Image | None:
        """Baseline: samples. Coarse: samples painted with the mean codeword of each cluster. Fine: real and refined."""
        if self.tokenizer is None:
            return None
        tokenizer = self.tokenizer.to(next(module.parameters()).device)
        count = min(SHEET_COLUMNS, self.tokens.num_classes)
        labels = torch.linspace(0, self.tokens.num_classes - 1, count).long()
        seeds = range(count)
        names = [self.tokens.class_names[label] for label in labels]
        if self.stage == "baseline":
            drawn = generate_tokens(module, labels, seeds, cfg_scale=2.0)
            rows = {"samples": tokenizer.decode(drawn, self.tokens.grid)}
        elif self.stage == "coarse":
            coarse = generate_tokens(module, labels, seeds, cfg_scale=2.0)
            rows = {"samples": tokenizer.paint(self._cluster_means()[coarse], *self.tokens.grid)}
        else:
            shown = self.held_out or self.tokens
            images = torch.linspace(0, len(shown) - 1, count).long().numpy()
            real, labels = shown.gather(images), torch.from_numpy(shown.labels[images])
            assert self.coarse_map is not None
            refined = refine_tokens(
                module, self.coarse_map.to_coarse(real), labels, self.coarse_map, seeds, support=self.support
            )
            rows = {
                "tokens": tokenizer.decode(real.to(refined.device), self.tokens.grid),
                "refined": tokenizer.decode(refined, self.tokens.grid),
            }
            names = [shown.class_names[label] for label in labels]
        return contact_sheet([list(to_bytes(row)) for row in rows.values()], list(rows), names)

    def _cluster_means(self) -> Tensor:
        """(M, d): what a coarse label looks like when nothing more is known."""
        assert self.tokenizer is not None
        assert self.coarse_map is not None
        codebook = self.tokenizer.codebook
        means = torch.zeros(self.coarse_map.num_coarse, codebook.shape[1], device=codebook.device)
        means.index_add_(0, self.coarse_map.fine_to_coarse.to(codebook.device), codebook)
        return self.tokenizer.quantizer.project(means / self.coarse_map.sizes.to(codebook.device)[:, None])

    def deliver(self, module: Any, path: Path) -> None:
        module.save(path)
