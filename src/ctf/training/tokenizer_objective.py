"""The tokenizer's objective: reconstruction, codebook and commitment losses, PatchGAN and LPIPS as options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.fingerprint import joint_fingerprint
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_bytes, to_tensor
from ctf.images.records import warn
from ctf.images.sheet import contact_sheet
from ctf.tokenizer.convolutional import ConvolutionalTokenizer
from ctf.tokenizer.losses import PatchDiscriminator, adaptive_weight, generator_loss, hinge_discriminator_loss
from ctf.tokenizer.lpips import LPIPS
from ctf.tokenizer.measure import WINDOW, measure_tokenizer
from ctf.tokenizer.quantizer import codebook_use, count_tokens
from ctf.tokenizer.registry import new_tokenizer
from ctf.training.batches import ImageBatches, read_or_next
from ctf.training.config import TokenizerTraining
from ctf.training.objective import Batch, Objective
from ctf.training.optimizer import build_adamw, set_rates
from ctf.training.processes import ALONE, Processes
from ctf.training.start import start_tokenizer

SHEET_COLUMNS = 12
FINGERPRINTED = 32  # images


class TokenizerObjective(Objective):
    """Train a tokenizer of any family with LlamaGen's encoder and decoder.

    The discriminator, if there is one, takes a step after each step of the tokenizer.

    Args:
        config: architecture, weights of the losses, treatment of dead codewords.
        steps: length of the run, for `restart_until` and the discriminator's learning rate.
        images: training images.
        held_out: images to evaluate on.

    Raises:
        InputError: images do not fit the tokenizer, or LPIPS lacks its weights.
    """

    module: ConvolutionalTokenizer

    def __init__(self, config: TokenizerTraining, steps: int, images: ImageSet, held_out: ImageSet | None) -> None:
        if config.perceptual_weight and config.perceptual_source is None:
            raise InputError("perceptual_weight needs perceptual_source: a folder, file or hub id with LPIPS weights")
        if held_out is not None and held_out.size < WINDOW:
            raise InputError(
                f"image_size {held_out.size} is too small for the SSIM of held-out images, which takes {WINDOW} and "
                "more: leave out held_out"
            )
        self.config, self.steps, self.images, self.held_out = config, steps, images, held_out
        self.num_images = len(images)
        shown = np.unique(np.linspace(0, len(images) - 1, FINGERPRINTED).astype(np.int64))
        self.data = joint_fingerprint([torch.tensor(read_or_next(images, int(index))) for index in shown])
        scales = {"scales": config.scales} if config.scales else {}
        self.module = new_tokenizer(config.family, config.model, **scales)
        self.layout = self.module.layout((images.size, images.size))
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are faster
        self.last_restart = int(config.restart_until * steps)
        self.counts = torch.zeros(len(self.layout), config.model.codebook_size, dtype=torch.int64)
        self.perceptual = LPIPS.load(config.perceptual_source) if config.perceptual_source else None
        self.extra = {}
        if config.discriminator_weight:
            self.discriminator = PatchDiscriminator()
            if images.size < self.discriminator.smallest:
                raise InputError(
                    f"image_size {images.size} is too small for the discriminator, which takes "
                    f"{self.discriminator.smallest} and more: set discriminator_weight to 0"
                )
            if config.discriminator_start > steps:
                warn(
                    f"discriminator_start is {config.discriminator_start} and the run has {steps} steps: the "
                    "discriminator never begins"
                )
            self.discriminator_optimizer = build_adamw(self.discriminator.parameters(), config.optimizer)
            self.extra = {"discriminator": self.discriminator, "discriminator_optimizer": self.discriminator_optimizer}
            self.seen: list[tuple[Tensor, Tensor]] = []  # images and reconstructions of this step's passes

    def start(self) -> dict[str, Any]:
        source = self.config.start_from
        self.started = start_tokenizer(self.module, source) if source else {}
        self._check_warm_up()
        return self.started

    def batches(self, batch_size: int, seed: int, rank: int, world: int, start: int) -> Iterator[Batch]:
        self._check_warm_up()  # of a run that goes on too, whose length may have changed
        if self.perceptual is not None:  # the loop moves the module and `extra` only
            self.perceptual.to(self.module.quantizer.weight.device)
        c = self.config
        batches = ImageBatches(self.images, batch_size, seed, c.flip, c.random_crop, rank, world)
        return ((images,) for images in batches.stream(start))

    def before_step(self, ema: nn.Module | None, step: int) -> None:
        if self.config.kmeans_start and not self._keeps_codebook and step == self.config.warmup_without_codebook:
            self._start_codebook(ema)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        (images,) = batch
        quantize = self._quantizes(step)
        decoded, quantized = module(images, quantize)
        decoded = decoded.float()
        reconstruction = F.mse_loss(decoded, images)
        values = {"mse": reconstruction.detach()}
        if self.perceptual is not None and c.perceptual_weight:
            distance = self.perceptual(images, decoded).mean()
            reconstruction = reconstruction + c.perceptual_weight * distance
            values["lpips"] = distance.detach()
        total = reconstruction
        if quantize:
            self.searched = quantized.searched
            self.counts = self.counts.to(images.device)
            count_tokens(self.counts, quantized.tokens, self.layout)
            values |= {"codebook_loss": quantized.codebook_loss.detach()}
        # Without quantisation both losses are 0, but DDP waits for a gradient of every parameter.
        if quantize or dist.is_initialized():
            total = total + c.codebook_weight * quantized.codebook_loss
            total = total + c.commitment_weight * quantized.commitment_loss
        if self._is_adversarial(step):
            adversarial = generator_loss(self.discriminator(decoded))
            weight = torch.full((), c.discriminator_weight, device=images.device)  # `torch.tensor` would wait to copy
            if c.adaptive_weight:
                weight = weight * adaptive_weight(reconstruction, adversarial, self.module.decoder.conv_out.weight)
            total = total + weight * adversarial
            self.seen.append((images, decoded.detach()))
            values |= {"adversarial": adversarial.detach(), "adversarial_weight": weight}
        return total, values

    def after_step(self, ema: nn.Module | None, step: int) -> dict[str, float]:
        c = self.config
        counts = {}
        if self._is_adversarial(step):
            self._train_discriminator(step)
        if self._quantizes(step):
            if dist.is_initialized():
                dist.all_reduce(self.module.quantizer.age, dist.ReduceOp.MIN)  # used by any process is used
            if c.restart_after and step % 20 == 19 and step < self.last_restart:
                counts["restarts"] = float(self._restart_dead(ema, step))
        return counts

    def _check_warm_up(self) -> None:
        if not self._quantizes(self.steps - 1):
            raise InputError(
                f"warmup_without_codebook is {self.config.warmup_without_codebook}: it must be below the {self.steps} "
                "steps of the run, or the codebook is never used"
            )

    @property
    def _keeps_codebook(self) -> bool:
        """Whether the codebook is one that was trained already, see `start_tokenizer`."""
        return "quantizer.weight" in self.started.get("taken", ())

    def _quantizes(self, step: int) -> bool:
        """A warm-up prepares k-means; without it encoder and decoder would only leave the codebook that they know."""
        return self._keeps_codebook or step >= self.config.warmup_without_codebook

    def _is_adversarial(self, step: int) -> bool:
        """Whether the discriminator takes part in step `step`, from 0; `discriminator_start` counts from 1."""
        return bool(self.config.discriminator_weight) and step + 1 >= self.config.discriminator_start

    def _train_discriminator(self, step: int) -> None:
        """One optimizer step over all passes of the batch, with the tokenizer's schedule and clipping."""
        c = self.config
        set_rates([self.discriminator_optimizer], c.optimizer, step, self.steps)
        self.discriminator_optimizer.zero_grad()  # the tokenizer's adversarial loss left gradients
        for images, decoded in self.seen:
            loss = hinge_discriminator_loss(self.discriminator(images), self.discriminator(decoded))
            (c.discriminator_weight * loss / len(self.seen)).backward()
        self.seen.clear()
        if dist.is_initialized():  # DDP does not wrap the discriminator
            for gradient in [p.grad for p in self.discriminator.parameters() if p.grad is not None]:
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
        if c.optimizer.clip:
            nn.utils.clip_grad_norm_(self.discriminator.parameters(), c.optimizer.clip)
        self.discriminator_optimizer.step()

    @torch.no_grad()
    def _restart_dead(self, ema: nn.Module | None, step: int) -> int:
        """Restart dead codewords on vectors of this step, with the same result in every process."""
        quantizer = self.module.quantizer
        generator = torch.Generator().manual_seed(step)
        passes = self.config.loop.accumulate  # codewords age in each forward pass
        dead_after = (self.config.restart_after + 1) * passes - 1
        dead = quantizer.restart_dead(self.searched.flatten(0, 1), dead_after, generator)
        if dist.is_initialized():
            dist.broadcast(quantizer.weight, 0)
        if isinstance(ema, ConvolutionalTokenizer):  # an average of old and new position would be near no vector
            ema.quantizer.weight[dead] = quantizer.weight[dead]
        return len(dead)

    @torch.no_grad()
    def _start_codebook(self, ema: nn.Module | None) -> None:
        """Initialise the codebook by k-means over at least four feature vectors per codeword."""
        c = self.config
        batches = ImageBatches(self.images, 64, c.loop.seed + 1, c.flip, c.random_crop)
        count = -(-4 * c.model.codebook_size // (64 * self.layout.num_tokens))
        quantizer = self.module.quantizer
        device = quantizer.weight.device
        self.module.eval()
        vectors = [quantizer.to_cluster(self.module.features(batches[i].to(device))) for i in range(count)]
        self.module.train()
        quantizer.initialize(torch.cat(vectors), c.loop.seed)
        if dist.is_initialized():
            dist.broadcast(quantizer.weight, 0)  # k-means rounds differently on other machines
        if isinstance(ema, ConvolutionalTokenizer):
            ema.quantizer.weight.copy_(quantizer.weight)

    def evaluate(self, module: nn.Module, processes: Processes = ALONE) -> dict[str, float]:
        """Usage of the codebook by the first process's tokens since the last evaluation, and PSNR on held-out images,
        which processes share."""
        metrics = {}
        if processes.is_first and self.counts.any():
            metrics = {f"train/{name}": value for name, value in codebook_use(self.counts).items()}
            self.counts.zero_()
        if self.held_out is not None:
            measured = measure_tokenizer(
                module,  # type: ignore[arg-type]
                self.held_out,
                progress=processes.is_first,
                perceptual=self.perceptual,
                part=range(processes.rank, len(self.held_out), processes.world),
                total=processes.sum,
            )
            metrics |= {f"held_out/{name}": value for name, value in measured.items() if name != "standard_error"}
        return metrics

    def sheet(self, module: Any) -> Image.Image | None:
        """Images, held-out ones if there are any, above their reconstructions."""
        shown = self.held_out or self.images
        indices = np.linspace(0, len(shown) - 1, SHEET_COLUMNS).astype(int)
        images = np.stack([read_or_next(shown, int(index)) for index in indices])
        tokens = module.encode(to_tensor(images).to(next(module.parameters()).device))
        decoded = to_bytes(module.decode(tokens, self.layout))
        return contact_sheet([list(images), list(decoded)], ["images", "reconstructed"])
