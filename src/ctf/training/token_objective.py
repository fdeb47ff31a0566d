"""The objective of every stage over stored tokens: its negative log-likelihood (eqs. 4, 9 and 10)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.fingerprint import joint_fingerprint
from ctf.images.pixels import to_bytes
from ctf.images.sheet import contact_sheet
from ctf.models.loss import ClusterLoss
from ctf.models.transformer import Block, compile_blocks
from ctf.preview import level_embeddings
from ctf.progress import progress_bar
from ctf.sampling.draw import find_filter
from ctf.sampling.random import Random
from ctf.sampling.samplers import find_sampler
from ctf.stages.stage import Stage, bits
from ctf.stages.transformer_stage import TransformerStage
from ctf.tokenizer.interface import Tokenizer
from ctf.tokens.token_set import TokenSet
from ctf.training.batches import TokenBatches
from ctf.training.objective import Batch, Objective
from ctf.training.processes import ALONE, Processes
from ctf.training.start import start_stage

SHEET_COLUMNS = 8
FINGERPRINTED = 256  # images


class TokenObjective(Objective):
    """Train a stage on a token set.

    Args:
        stage: the model.
        tokens: training tokens.
        held_out: tokens to evaluate on.
        tokenizer: decodes contact sheets.
        cluster_loss: added loss, for a Transformer that predicts the codebook's own tokens.
        start_from: weights to start from, see `start_stage`.

    Raises:
        InputError: tokens, stage and tokenizer do not belong together.
    """

    module: Stage

    def __init__(
        self,
        stage: Stage,
        tokens: TokenSet,
        held_out: TokenSet | None = None,
        tokenizer: Tokenizer | None = None,
        cluster_loss: ClusterLoss | None = None,
        start_from: str | None = None,
    ) -> None:
        if held_out is not None:
            held_out = held_out.in_classes(tokens.class_names, f"{tokens.folder}'s")
        for part in (tokens, held_out):
            if part is None:
                continue
            if any(getattr(part, name) != getattr(stage, name) for name in ("codebook_size", "layout", "num_classes")):
                raise InputError(
                    f"{part.folder} differs from what the stage is for in codebook size, layout or classes"
                )
            if stage.codebook is not None and part.fingerprint_of_codebook not in (None, stage.codebook):
                raise InputError(
                    f"{part.folder} and the stage belong to different codebooks: tokenize or cluster again"
                )
        if cluster_loss is not None and not isinstance(stage, TransformerStage):
            raise InputError(f"stages of kind {stage.kind} have no loss on clusters: leave out cluster_loss_weight")
        if tokenizer is not None:
            tokens.check_tokenizer(tokenizer)
        self.module, self.tokens, self.held_out, self.tokenizer = stage, tokens, held_out, tokenizer
        clusters = [] if cluster_loss is None else [cluster_loss.cluster]
        self.num_images, self.data = len(tokens), _fingerprint(tokens, clusters)
        self.extra = {}
        self.cluster_loss, self.start_from = cluster_loss, start_from
        sampling = stage.resolved()  # raises now, not in the first evaluation
        find_sampler(sampling)
        find_filter(sampling)
        # The order by confidence has no likelihood: evaluation then uses the default order.
        self.measured = dataclasses.replace(sampling, order=None) if sampling.order == "confidence" else sampling

    def start(self) -> dict[str, Any]:
        return start_stage(self.module, self.start_from, self.tokens) if self.start_from else {}

    def compiled(self) -> nn.Module:
        """The stage; a Transformer is compiled block by block, once for all blocks and batches."""
        if not isinstance(self.module, TransformerStage):
            return super().compiled()
        compile_blocks(self.module)
        return self.module

    def blocks(self, module: nn.Module) -> list[Block]:
        return list(module.transformer.blocks) if isinstance(module, TransformerStage) else super().blocks(module)

    def batches(self, batch_size: int, seed: int, rank: int, world: int, start: int) -> Iterator[Batch]:
        batches = TokenBatches(self.tokens, batch_size, seed, rank, world)
        return map(batches.__getitem__, itertools.count(start))

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        added = {} if self.cluster_loss is None else {"cluster_loss": self.cluster_loss.to(batch[0].device)}
        losses = module(*batch, **added)
        return losses if losses.ndim == 1 else losses.mean(), {}

    def evaluate(self, module: Any, processes: Processes = ALONE) -> dict[str, float]:
        """Mean loss in nats and bits per token, and token accuracy, without augmentation, in the steps and the order of
        sampling. Processes share the images."""
        if self.held_out is None:
            return {}
        nats = hits = 0.0
        starts = range(64 * processes.rank, len(self.held_out), 64 * processes.world)
        with progress_bar(len(starts), "evaluate", "batch", hidden=not processes.is_first) as bar:
            for start in starts:
                images = range(start, min(start + 64, len(self.held_out)))
                tokens, labels = self.held_out.gather(images), torch.from_numpy(self.held_out.labels[images])
                log_prob, right = module.scores(tokens.to(module.device), labels.to(module.device), self.measured)
                nats -= log_prob.double().sum().item()
                hits += right.double().sum().item()
                bar.update()
        nats, hits = processes.sum(torch.tensor([nats, hits], dtype=torch.float64)).tolist()
        count = len(self.held_out) * self.held_out.num_tokens
        metrics = {"loss": nats / count, "bits_per_token": bits(nats / count), "accuracy": hits / count}
        return {f"held_out/{name}": value for name, value in metrics.items()}

    def sheet(self, module: Any) -> Image.Image | None:
        """Samples of a few classes. A stage with given labels gets those of real images, which are shown above."""
        if self.tokenizer is None:
            return None
        shown = self.held_out or self.tokens
        if module.given is None:
            count = min(SHEET_COLUMNS, module.num_classes)
            labels, given = torch.linspace(0, module.num_classes - 1, count).long(), None
        else:
            count = min(SHEET_COLUMNS, len(shown))
            images = torch.linspace(0, len(shown) - 1, count).long().numpy()
            labels = torch.from_numpy(shown.labels[images])
            real, given = module.levels(shown.gather(images).to(module.device))
        rows = {} if given is None else {"tokens": real}
        rows["samples"] = module.generate(labels, Random(range(count)), given=given)
        tokenizer = self.tokenizer.to(module.device)
        vectors = level_embeddings(tokenizer, module.predicts)
        decoded = [to_bytes(tokenizer.decode_embeddings(vectors[row], module.layout)) for row in rows.values()]
        return contact_sheet([list(row) for row in decoded], list(rows), [shown.class_names[y] for y in labels])


def _fingerprint(tokens: TokenSet, clusters: list[Tensor]) -> str:
    """Of the labels of all images, all views of some, evenly spread, and the clusters of an added loss."""
    shown = np.unique(np.linspace(0, len(tokens) - 1, FINGERPRINTED).astype(np.int64))
    views = [tokens.gather(shown, view) for view in range(tokens.num_augmentations)]
    return joint_fingerprint([torch.from_numpy(tokens.labels), *views, *clusters])
