"""The training loop, one for every objective."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections import deque
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.files import check_writable, write_json
from ctf.images.sheet import save_png
from ctf.model_folder import CONFIG, RUN_MILESTONES, RUN_MODEL, latest_checkpoint, run_settings
from ctf.progress import progress_bar
from ctf.training.accelerator import build_accelerator
from ctf.training.batches import on_device
from ctf.training.checkpoint import Part, not_finite, resume, save_checkpoint
from ctf.training.config import LoopConfig, OptimizerConfig
from ctf.training.interrupt import interruptible
from ctf.training.log import Log, Meter
from ctf.training.objective import Batch, Objective
from ctf.training.optimizer import build_optimizers, learning_rate
from ctf.training.skipping import SkippedSteps


def train(
    objective: Objective, out: str | Path, optimizer_config: OptimizerConfig, config: LoopConfig, settings: Any
) -> dict[str, float]:
    """Train until the last step and write `out/model.safetensors`.

    The run folder also gets `config.json`, `log.jsonl`, `checkpoints/`, `milestones/` where some are asked for, and
    `samples/` where the objective can show any. Under `torchrun` each process takes its part of every batch (DDP); the
    first one writes, and logs the loss of its own part.

    Args:
        objective: what to train.
        out: run folder.
        optimizer_config: the optimizer and its schedule.
        config: length, precision, checkpoints.
        settings: the dataclass that the run was made from, kept in the run folder.

    Returns:
        The last evaluation.

    Raises:
        InputError: the folder holds a run and `resume` is off, or something else; it cannot be written; the
            checkpoint to resume from is damaged or of other settings; loss or weights are no longer finite (the
            message names the last good checkpoint), or gradients are not in many steps in a row; settings that do not
            go together.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    run = Path(out)
    check_writable(run, "folder")
    if (run / CONFIG).exists() and run_settings(run) is None:
        raise InputError(f"{run} holds something else than a run: choose another --out")
    if not config.resume and (latest_checkpoint(run) or (run / RUN_MODEL).exists()):
        raise InputError(f"{run} already holds a run: continue it with --loop.resume true, or choose another --out")
    trainer = _Trainer(objective, run, optimizer_config, config)
    if trainer.is_main_process:
        write_json(run / CONFIG, dataclasses.asdict(settings))
    with Log(run, trainer.done, config.tensorboard, silent=not trainer.is_main_process) as log:
        metrics = trainer.run_steps(log)
        if trainer.is_main_process:
            objective.save(trainer.best, run / RUN_MODEL)
        trainer.accelerator.wait_for_everyone()
    return metrics


class _Trainer:
    """A run between its steps.

    Attributes:
        done: steps before this start.
        steps: number of the last step.
        best: what is evaluated and saved as the model: the averaged weights where there are any.
        is_main_process: whether this process writes the files.
    """

    def __init__(self, objective: Objective, run: Path, optimizer_config: OptimizerConfig, config: LoopConfig) -> None:
        self.objective, self.run, self.optimizer_config, self.config = objective, run, optimizer_config, config
        self.accelerator = build_accelerator(config)
        self.is_main_process = self.accelerator.is_main_process
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        if config.batch_size % (config.accumulate * self.world):
            raise InputError(
                f"batch_size {config.batch_size} is not a multiple of accumulate × processes = "
                f"{config.accumulate} × {self.world}"
            )
        self.steps = config.total_steps(objective.num_images)
        if beyond := [step for step in config.milestones if step > self.steps]:
            raise InputError(f"loop.milestones: step {beyond[0]} is never reached, the run has {self.steps}")
        self.meter = Meter()

        model = objective.module
        for part in (model, *objective.extra.values()):
            if isinstance(part, nn.Module):
                part.to(self.accelerator.device)
        self.ema = copy.deepcopy(model).eval().requires_grad_(False) if config.ema else None
        self.best = model if self.ema is None else self.ema
        trained = objective.compiled() if config.compile else model
        optimizers = build_optimizers(model, optimizer_config)
        self.module, *self.optimizers = self.accelerator.prepare(trained, *optimizers.values())
        self.skipped = SkippedSteps(self.optimizers, self.accelerator.device)
        self.flags: deque[Tensor] = deque()
        self.parts: dict[str, Part] = {"model": model, **optimizers, **objective.extra}
        if self.ema is not None:
            self.parts["ema"] = self.ema
        self.done = resume(run, self.parts, quiet=not self.is_main_process)

    def run_steps(self, log: Log) -> dict[str, float]:
        """Take all steps that are left; returns the last evaluation."""
        c = self.config
        endless = self.objective.batches(c.batch_size, c.seed, self.rank, self.world, self.done)
        batches = on_device(endless, self.accelerator.device)
        self.module.train()
        bar = progress_bar(self.steps, self.run.name, "step", self.done, hidden=not self.is_main_process)
        with interruptible() as interrupted, bar, closing(batches):
            for step in range(self.done, self.steps):
                rate = self._step(next(batches), step)
                now = step + 1
                finished = now == self.steps
                bar.update()
                if finished or now % c.log_every == 0:
                    self._check_finite(self.meter.not_finite() or self.skipped.culprit(), now)
                    skipped = self.skipped.take()
                    line = self.meter.line() | ({"skipped_steps": skipped} if skipped else {})
                    epoch = now * c.batch_size / self.objective.num_images
                    log.write(now, {"learning_rate": rate, "epoch": epoch, **line})
                    # Not redrawn at once: a bar that is not on the screen yet would stay behind without its line end.
                    bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
                stop = self._anywhere(interrupted())
                if finished or stop or _due(now, c.checkpoint_every):
                    self._save(now)
                if now in c.milestones:
                    self._keep(now)
                if stop and not finished:
                    self._stop(now)
                if not finished and _due(now, c.evaluate_every):
                    self._report(now, log)
        return self._report(max(self.done, self.steps), log)

    def _step(self, batch: Batch, step: int) -> float:
        """One optimizer step, number `step` from 0; returns its learning rate."""
        c = self.config
        # Dropout depends on seed, step and rank alone: random state need not be in the checkpoint.
        torch.manual_seed(((c.seed * 1_000_003 + step) * self.world + self.rank) % 2**63)
        self.objective.before_step(self.ema, step)
        rate = learning_rate(self.optimizer_config, step, self.steps)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        pieces = zip(*(tensor.chunk(c.accumulate) for tensor in batch), strict=True)
        for index, piece in enumerate(pieces):
            last = index == c.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                loss, values = self.objective.loss(self.module, piece, step)
                self.accelerator.backward(loss / c.accumulate)
            self.meter.add({"loss": loss, **values}, 1 / c.accumulate)
        clip = self.optimizer_config.clip or math.inf  # which multiplies by 1
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), clip)
        if self.accelerator.scaler is None:  # which meets infinite gradients on purpose, and skips their steps itself
            finite = self.skipped.judge(norm)
            self.meter.add({"gradient_norm": norm.where(finite > 0, 0)}, finite)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.ema is not None:
            # The first steps forget the random start: after t of them the average is over about t/10.
            _update_average(self.ema, self.objective.module, min(c.ema, (1 + step) / (10 + step)))
        self.meter.end_step(self.objective.after_step(self.ema, step))
        return rate

    def _report(self, step: int, log: Log) -> dict[str, float]:
        """Evaluate and make a contact sheet, on the main process; on a GPU in the precision of the run."""
        if not self.is_main_process:
            return {}
        was_training = self.best.training
        self.best.eval()
        on_cpu = self.accelerator.device.type == "cpu"
        with torch.no_grad(), nullcontext() if on_cpu else self.accelerator.autocast():
            metrics = self.objective.evaluate(self.best)
            sheet = self.objective.sheet(self.best)
        self.best.train(was_training)
        if sheet is not None:
            save_png(self.run / "samples" / f"step-{step:08d}.png", sheet)
        if metrics:
            log.write(step, metrics)
        return metrics

    def _save(self, step: int) -> None:
        self._check_finite(self.meter.not_finite() or self.skipped.culprit() or not_finite(self.parts), step)
        if self.is_main_process:
            save_checkpoint(self.run, step, self.parts, self.config.keep_checkpoints)

    def _keep(self, step: int) -> None:
        """Write the weights of this step where later steps leave them."""
        self._check_finite(self.meter.not_finite() or self.skipped.culprit() or not_finite(self.parts), step)
        if self.is_main_process:
            self.objective.save(self.best, milestone_path(self.run, step))
            if self.ema is not None:
                self.objective.save(self.objective.module, milestone_path(self.run, step, "-without-ema"))

    def _check_finite(self, culprit: str | None, step: int) -> None:
        if culprit:
            good = latest_checkpoint(self.run)
            raise InputError(
                f"{culprit} is not finite at step {step}; "
                f"{f'the last good checkpoint is {good}' if good else 'there is no checkpoint yet'}: "
                "lower optimizer.learning_rate or optimizer.clip, or train in float32"
            )

    def _anywhere(self, flag: bool) -> bool:
        """Whether `flag` is set on any process: all must stop after the same step, or the rest would wait for ever."""
        if self.world == 1:
            return flag
        device = self.accelerator.device
        self.flags.append(self.accelerator.reduce(torch.full((), float(flag), device=device)))
        # A GPU is asked for the answer of two steps ago, which it has.
        return len(self.flags) > (0 if device.type == "cpu" else 2) and bool(self.flags.popleft())

    def _stop(self, step: int) -> None:
        self.accelerator.wait_for_everyone()  # else torchrun would end the main process while it writes
        if self.is_main_process:
            where = latest_checkpoint(self.run)
            print(f"Stopped after step {step}; continue with --loop.resume true ({where})", file=sys.stderr)
        raise KeyboardInterrupt


def milestone_path(run: Path, step: int, suffix: str = "") -> Path:
    """Where the weights after `step` steps are kept."""
    return run / RUN_MILESTONES / f"step-{step:08d}{suffix}.safetensors"


def _due(now: int, every: int) -> bool:
    return every > 0 and now % every == 0


@torch.no_grad()
def _update_average(ema: nn.Module, module: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in module.parameters()], 1 - decay)
