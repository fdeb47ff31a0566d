"""The tokenizer's objective: reconstruction, codebook and commitment losses, PatchGAN and LPIPS as options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_bytes, to_tensor
from ctf.images.sheet import contact_sheet
from ctf.tokenizer.discriminator import PatchDiscriminator, adaptive_weight, generator_loss, hinge_discriminator_loss
from ctf.tokenizer.measure import measure_tokenizer
from ctf.tokenizer.perceptual import LPIPS
from ctf.tokenizer.quantizer import perplexity, usage
from ctf.tokenizer.vq_tokenizer import VQTokenizer
from ctf.training.config import TokenizerTraining
from ctf.training.image_batches import ImageBatches, read_or_next
from ctf.training.objective import Batch, Objective

SHEET_COLUMNS = 12


class TokenizerObjective(Objective):
    """Train a VQTokenizer; the discriminator, where there is one, learns after each step of the tokenizer.

    Args:
        config: architecture, weights of the losses, treatment of dead codewords.
        steps: length of the run, for `restart_until`.
        images: training images.
        held_out: images to evaluate on.

    Raises:
        InputError: images that do not fit the downsampling, or LPIPS without its weights.
    """

    module: VQTokenizer

    def __init__(self, config: TokenizerTraining, steps: int, images: ImageSet, held_out: ImageSet | None) -> None:
        f = config.model.downsampling
        if images.size % f:
            raise InputError(f"image_size {images.size} is not a multiple of the tokenizer's downsampling {f}")
        if config.perceptual_weight and config.perceptual_source is None:
            raise InputError("perceptual_weight needs perceptual_source: a folder, file or hub id with LPIPS weights")
        self.config, self.images, self.held_out = config, images, held_out
        self.num_images = len(images)
        self.module = VQTokenizer(config.model)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what convolutions like
        self.last_restart = int(config.restart_until * steps)
        self.counts = torch.zeros(config.model.codebook_size, dtype=torch.int64)
        self.perceptual = LPIPS.load(config.perceptual_source) if config.perceptual_source else None
        self.extra = {}
        if config.discriminator_weight:
            self.discriminator = PatchDiscriminator()
            if images.size < self.discriminator.smallest:
                raise InputError(
                    f"image_size {images.size} is too small for the discriminator, which takes "
                    f"{self.discriminator.smallest} and more: set discriminator_weight to 0"
                )
            self.discriminator_optimizer = torch.optim.AdamW(
                self.discriminator.parameters(),
                lr=config.optimizer.learning_rate,
                betas=config.optimizer.betas,
                weight_decay=config.optimizer.weight_decay,
            )
            self.extra = {"discriminator": self.discriminator, "discriminator_optimizer": self.discriminator_optimizer}

    def batches(self, batch_size: int, seed: int, rank: int, world: int, start: int) -> Iterator[Batch]:
        batches = ImageBatches(self.images, batch_size, seed, self.config.flip, rank, world)
        for images in batches.stream(start):
            yield (images,)

    def before_step(self, ema: nn.Module | None, step: int) -> None:
        if step == self.config.warmup_without_codebook:
            self._start_codebook(ema)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        (images,) = batch
        quantize = step >= c.warmup_without_codebook
        painted, quantized = module(images, quantize)
        painted = painted.float()
        reconstruction = F.mse_loss(painted, images)
        values = {"mse": reconstruction.detach()}
        if self.perceptual is not None and c.perceptual_weight:
            self.perceptual.to(images.device)
            distance = self.perceptual(images, painted).mean()
            reconstruction = reconstruction + c.perceptual_weight * distance
            values["lpips"] = distance.detach()
        total = reconstruction
        if quantize:
            self.features = quantized.features
            self.counts += torch.bincount(quantized.tokens.flatten().cpu(), minlength=len(self.counts))
            values |= {"codebook_loss": quantized.codebook_loss.detach()}
        if quantize or _together():  # unquantised, both are 0, but DDP waits for a gradient of every parameter
            total = total + c.codebook_weight * quantized.codebook_loss
            total = total + c.commitment_weight * quantized.commitment_loss
        if c.discriminator_weight and step >= c.discriminator_start:
            adversarial = generator_loss(self.discriminator(painted))
            weight = adaptive_weight(reconstruction, adversarial, self.module.decoder.last_layer)
            total = total + c.discriminator_weight * weight * adversarial
            self.seen = (images, painted.detach())
            values |= {"adversarial": adversarial.detach(), "adversarial_weight": weight}
        return total, values

    def after_step(self, ema: nn.Module | None, step: int) -> dict[str, float]:
        c = self.config
        counts = {}
        if c.discriminator_weight and step >= c.discriminator_start:
            real, fake = (self.discriminator(images) for images in self.seen)
            loss = hinge_discriminator_loss(real, fake)
            self.discriminator_optimizer.zero_grad()
            loss.backward()
            for parameter in self.discriminator.parameters():
                _average(parameter.grad)
            self.discriminator_optimizer.step()
        if step >= c.warmup_without_codebook:
            if _together():
                dist.all_reduce(self.module.quantizer.age, dist.ReduceOp.MIN)  # used anywhere is used
            if c.restart_after and step % 20 == 19 and step < self.last_restart:
                counts["restarts"] = float(self._restart_dead(ema, step))
        return counts

    @torch.no_grad()
    def _restart_dead(self, ema: nn.Module | None, step: int) -> int:
        """Dead codewords onto features of this step; every process ends with the same codebook."""
        quantizer = self.module.quantizer
        generator = torch.Generator().manual_seed(step)
        passes = self.config.loop.accumulate  # codewords age with each forward pass
        dead_after = (self.config.restart_after + 1) * passes - 1
        dead = quantizer.restart_dead(self.features.flatten(0, 1), dead_after, generator)
        if _together():
            dist.broadcast(quantizer.weight, 0)
        if isinstance(ema, VQTokenizer):  # the average of a codeword's old place and its new one is neither
            ema.quantizer.weight[dead] = quantizer.weight[dead]
        return len(dead)

    @torch.no_grad()
    def _start_codebook(self, ema: nn.Module | None) -> None:
        """k-means over features of as many images as it takes to see each codeword several times."""
        model = self.config.model
        per_image = (self.images.size // model.downsampling) ** 2
        batches = ImageBatches(self.images, 64, self.config.loop.seed + 1, self.config.flip)
        needed = -(-4 * model.codebook_size // (64 * per_image))
        device = self.module.quantizer.weight.device
        self.module.eval()
        found = [self.module.features(batches[i].to(device)).float().flatten(0, 1) for i in range(needed)]
        self.module.train()
        self.module.quantizer.initialize(torch.cat(found), self.config.loop.seed)
        if _together():
            dist.broadcast(self.module.quantizer.weight, 0)  # k-means rounds differently on other machines
        if isinstance(ema, VQTokenizer):
            ema.quantizer.weight.copy_(self.module.quantizer.weight)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Codebook health over the training tokens since the last evaluation, PSNR on held-out images."""
        values = {}
        if self.counts.any():
            values = {"train/usage": usage(self.counts), "train/perplexity": perplexity(self.counts)}
            self.counts.zero_()
        if self.held_out is not None:
            measured = measure_tokenizer(module, self.held_out, progress=False)  # type: ignore[arg-type]
            values |= {f"held_out/{name}": value for name, value in measured.items()}
        return values

    def sheet(self, module: Any) -> Image.Image | None:
        shown = self.held_out or self.images
        indices = np.linspace(0, len(shown) - 1, SHEET_COLUMNS).astype(int)
        images = np.stack([read_or_next(shown, int(index)) for index in indices])
        tensor = to_tensor(images).to(next(module.parameters()).device)
        grid = tuple(side // module.config.downsampling for side in images.shape[1:3])
        painted = to_bytes(module.decode(module.encode(tensor), grid))
        return contact_sheet([list(images), list(painted)], ["images", "reconstructed"])

    def deliver(self, module: Any, path: Path) -> None:
        module.save(path)


def _together() -> bool:
    """Whether other processes train the same model."""
    return dist.is_available() and dist.is_initialized()


def _average(gradient: Tensor | None) -> None:
    """Mean over all processes, in place, for what DDP does not wrap."""
    if gradient is not None and _together():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
