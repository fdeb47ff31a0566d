"""The training loop, one for every objective."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ctf.device import gpu_compiles
from ctf.errors import InputError
from ctf.files import check_writable, only_writer
from ctf.hub import CONFIG
from ctf.images.records import warn
from ctf.images.sheet import save_png
from ctf.progress import progress_bar
from ctf.run_folder import RUN_MODEL, last_evaluation, latest_checkpoint, milestone_path, run_settings, step_of
from ctf.torchrun import rank_and_world
from ctf.training.accelerator import build_accelerator
from ctf.training.batches import on_device
from ctf.training.changes import changed_settings, write_settings
from ctf.training.checkpoint import Checkpoints, Part, not_finite, resume, tidy
from ctf.training.config import LoopConfig, OptimizerConfig
from ctf.training.interrupt import Interrupts, interruptible
from ctf.training.log import Log, Meter
from ctf.training.objective import Batch, Objective
from ctf.training.optimizer import build_optimizers, set_rates
from ctf.training.processes import Processes
from ctf.training.sharding import full_tensor, local, meta_copy, shard, unsharded
from ctf.training.skipping import SkippedSteps
from ctf.training.start import in_words
from ctf.training.watch import Watch


def train(
    objective: Objective, out: str | Path, optimizer_config: OptimizerConfig, config: LoopConfig, settings: Any
) -> dict[str, float]:
    """Train until the last step and write `out/model.safetensors`.

    The run folder also gets `config.json`, `log.jsonl`, `checkpoints/`, `milestones/` where some are asked for,
    `samples/` where the objective can show any, and `changes.jsonl` where it was resumed with other settings. A run
    that has ended goes on if it is given more steps; its model so far becomes a milestone. Under `torchrun` each
    process takes its part of every batch, with all weights (DDP) or a shard of them (FSDP2). The first process writes,
    and logs the mean over all.

    Args:
        objective: what to train.
        out: run folder.
        optimizer_config: the optimizer and its schedule.
        config: length, precision, checkpoints.
        settings: the dataclass that the run was made from, kept in the run folder.

    Returns:
        The last evaluation; of several processes, the first one's. Where nothing is left to train, that of the log.

    Raises:
        InputError: the folder holds a run and `resume` is off, or something else; it cannot be written; a setting that
            a resumed run cannot change; the checkpoint to resume from is damaged or of other settings; loss, weights or
            the gradients of several steps in a row are not finite (the message names the last good checkpoint);
            settings that do not go together.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    run = Path(out)
    check_writable(run, "folder")
    if (run / CONFIG).exists() and run_settings(run) is None:
        raise InputError(f"{run} holds something else than a run: choose another --out")
    values, model, last = dataclasses.asdict(settings), run / RUN_MODEL, latest_checkpoint(run)
    values |= values.pop("kind_settings", {})  # among the others, as `--config` reads them
    if not config.resume and (last or model.exists()):
        raise InputError(f"{run} already holds a run: continue it with --loop.resume true, or choose another --out")
    if model.exists() and last is None:
        raise InputError(f"{run} holds a model, but no checkpoint to continue from: choose another --out")
    changed = changed_settings(run, values) if last else {}
    steps, done = config.total_steps(objective.num_images), step_of(last) if last else 0
    if model.exists() and done >= steps:
        if rank_and_world()[0] == 0:
            reason = f"{run} has done {done} steps, and {steps} were asked for: nothing is left to train"
            print(f"{reason}. A higher loop.steps continues it.", file=sys.stderr)
        return last_evaluation(run)
    if done > steps:
        raise InputError(f"{run} has done {done} steps: loop.steps, or epochs, must be at least that, not {steps}")
    objective.started = started = (run_settings(run) or {}).get("started", {}) if last else objective.start()
    if started:
        values["started"] = started
    trainer = Trainer(objective, run, optimizer_config, config)
    first = trainer.processes.is_first
    with only_writer(run) if first else nullcontext():
        if first:
            if model.exists():  # of the shorter run: the longer one has no model until its end
                kept = milestone_path(run, done)
                kept.parent.mkdir(exist_ok=True)
                model.replace(kept)
            tidy(run, trainer.done)  # under the lock: to another run they are not unfinished
            write_settings(run, trainer.done, values, changed)
            if started and not trainer.done:
                print(in_words(started), file=sys.stderr)
            if trainer.done and changed:
                changes = ", ".join(f"{name} {now} (was {before})" for name, (before, now) in changed.items())
                print(f"{run} goes on after step {trainer.done} with {changes}", file=sys.stderr)
        with closing(Log(run, trainer.done, config.tensorboard, silent=not first)) as log:
            metrics = trainer.run_steps(log)
            best = trainer.full(trainer.best)
            if first:
                objective.save(best, run / RUN_MODEL)
            trainer.processes.wait()
            trainer.checkpoints.keep_newest()  # only now every process has written its shard of the last one
    return metrics


class Trainer:
    """A run that is ready to take its steps: model on its device, optimizers, and the state of the last checkpoint.

    Attributes:
        done: steps before this start.
        steps: number of the last step.
        best: the network that is evaluated and saved: the averaged weights, else the trained ones.
        processes: the processes of the run, seen from this one.
    """

    def __init__(self, objective: Objective, run: Path, optimizer_config: OptimizerConfig, config: LoopConfig) -> None:
        self.objective, self.run, self.optimizer_config, self.config = objective, run, optimizer_config, config
        self.accelerator = build_accelerator(config)
        device = self.accelerator.device
        self.processes = Processes(self.accelerator.process_index, self.accelerator.num_processes, device)
        world = self.processes.world
        if config.batch_size % (config.accumulate * world):
            raise InputError(
                f"batch_size {config.batch_size} is not a multiple of accumulate × processes = "
                f"{config.accumulate} × {world}"
            )
        self.steps = config.total_steps(objective.num_images)
        if (warmup := optimizer_config.warmup_steps) >= self.steps:
            raise InputError(f"optimizer.warmup_steps is {warmup}: it must be below the {self.steps} steps of the run")
        if beyond := [step for step in config.milestones if step > self.steps]:
            raise InputError(f"loop.milestones: step {beyond[0]} is never reached, the run has {self.steps}")
        self.meter = Meter()
        self.watch = Watch(self.processes, config.patience)

        model = objective.module
        for part in (model, *objective.extra.values()):
            if isinstance(part, nn.Module):
                part.to(device)
        self.ema = copy.deepcopy(model).eval().requires_grad_(False) if config.ema else None
        self.best = model if self.ema is None else self.ema
        if config.recompute:
            for block in objective.blocks(model):
                block.recomputed = True
        if config.compile and device.type == "cuda" and not gpu_compiles():
            raise InputError("loop.compile does not work on this GPU, see the warning: leave it out")
        if config.compile and world > 1:
            # DDP's buckets end within blocks, and Dynamo would break their graphs there.
            torch._dynamo.config.optimize_ddp = False
        trained = objective.compiled() if config.compile else model
        self.is_sharded = config.shard and world > 1
        if self.is_sharded:
            if optimizer_config.name == "muon":
                raise InputError("optimizer.name muon needs whole matrices: choose adamw, or leave out loop.shard")
            self.meta = meta_copy(self.best)
            for module in (model, *([] if self.ema is None else [self.ema])):
                shard(module, objective.blocks(module), device, self.accelerator.mixed_precision == "bf16")
        optimizers = build_optimizers(model, optimizer_config)
        # "Evaluation" leaves out DDP, which sharded weights do without.
        self.module = self.accelerator.prepare_model(trained, evaluation_mode=self.is_sharded)
        self.optimizers = [*optimizers.values()]
        self.skipped = SkippedSteps(self.optimizers, device)
        self.flags: deque[Tensor] = deque()
        self.parts: dict[str, Part] = {"model": model, **optimizers, **objective.extra}
        if self.ema is not None:
            self.parts["ema"] = self.ema
        self.done = resume(run, self.parts, objective.num_images, self.processes, objective.data)
        passed = [step for step in config.milestones if step < self.done and not milestone_path(run, step).exists()]
        #: Whether this step became a milestone after it was taken.
        self.late = self.done in config.milestones and not milestone_path(run, self.done).exists()
        if passed:
            warn(f"loop.milestones: {run} is beyond step {passed[0]}, whose weights were not kept")
        writers = self.processes if self.is_sharded else Processes(self.processes.rank)
        self.checkpoints = Checkpoints(
            run, self.parts, config.keep_checkpoints, objective.num_images, writers, objective.data
        )

    def batches(self) -> Generator[Batch, None, None]:
        """Batches on the device, from that of the next step on."""
        c, processes = self.config, self.processes
        batches = self.objective.batches(c.batch_size, c.seed, processes.rank, processes.world, self.done)
        return on_device(batches, processes.device)

    def run_steps(self, log: Log) -> dict[str, float]:
        """Take all steps that are left; returns the last evaluation."""
        c, processes = self.config, self.processes
        self.module.train()
        bar = progress_bar(self.steps, self.run.name, "step", self.done, hidden=not processes.is_first)
        with (
            interruptible() as interrupted,
            bar,
            closing(self.batches()) as batches,
            self.watch,
            closing(self.checkpoints),
        ):
            if self.late:
                self._keep(self.done)
            if self._is_evaluated(self.done) and not log.evaluated:  # a kill came in between
                self._report_or_stop(self.done, log, interrupted)
            for step in range(self.done, self.steps):
                self.watch.now(step, "reading a batch")
                batch = next(batches)
                self.watch.now(step, "training")
                rate = self.step(batch, step)
                now = step + 1
                finished = now == self.steps
                bar.update()
                if finished or now % c.log_every == 0:
                    self.checkpoints.check()
                    self._check_finite(now)
                    skipped = self.skipped.take()
                    line = self.meter.line(processes) | ({"skipped_steps": skipped} if skipped else {})
                    epoch = now * c.batch_size / self.objective.num_images
                    log.write(now, {"learning_rate": rate, "epoch": epoch, **line})
                    # No refresh: a bar that is not on the screen yet would be left there without its line end.
                    bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
                stop = self._anywhere(interrupted())
                self.watch.now(step, "saving")
                if now in c.milestones:  # before the checkpoint, from which a killed run would go on without it
                    self._keep(now)
                if finished or stop or (c.checkpoint_every and now % c.checkpoint_every == 0):
                    self._save(now)
                if stop:  # after the last step too: evaluating would take minutes
                    self._stop(now)
                if self._is_evaluated(now):
                    self._report_or_stop(now, log, interrupted)
            if self.done >= self.steps and log.evaluated:
                return last_evaluation(self.run)
            return self._report_or_stop(self.steps, log, interrupted)

    def _is_evaluated(self, step: int) -> bool:
        """Whether an evaluation follows step `step`, from 1, which is not the last one."""
        every = self.config.evaluate_every
        return 0 < step < self.steps and bool(every) and step % every == 0

    def _report_or_stop(self, step: int, log: Log, interrupted: Interrupts) -> dict[str, float]:
        """Evaluate, which can take minutes: a process that trains alone stops in the middle of it."""
        try:
            with interrupted.at_once() if self.processes.world == 1 else nullcontext():
                return self._report(step, log)
        except KeyboardInterrupt:
            if (last := latest_checkpoint(self.run)) is None or step_of(last) < step:
                self._save(step)
            self._stop(step)

    def step(self, batch: Batch, step: int) -> float:
        """One optimizer step, number `step` from 0; returns its learning rate."""
        c = self.config
        # Dropout depends on seed, step and rank alone: random state need not be in the checkpoint.
        torch.manual_seed(((c.seed * 1_000_003 + step) * self.processes.world + self.processes.rank) % 2**63)
        self.objective.before_step(self.ema, step)
        rate = set_rates(self.optimizers, self.optimizer_config, step, self.steps)
        pieces = zip(*(tensor.chunk(c.accumulate) for tensor in batch), strict=True)
        is_split, weights = c.accumulate * self.processes.world > 1, []
        for index, piece in enumerate(pieces):
            # FSDP reduces gradients in every pass: full ones would take the memory that sharding saves.
            reduce = self.is_sharded or index == c.accumulate - 1
            with nullcontext() if reduce else self.accelerator.no_sync(self.module):
                losses, values = self.objective.loss(self.module, piece, step)
                loss = losses.mean()
                # Pieces count by their positions; `piece[0].numel()` is the same in all pieces of all processes.
                weights.append(losses.numel() / piece[0].numel() if losses.ndim and is_split else 1.0)
                self.accelerator.backward(loss * weights[-1] / c.accumulate)
            self.meter.add({"loss": loss, **values}, weights[-1] / c.accumulate)
        if losses.ndim and is_split:
            self._divide_gradients(sum(weights) / c.accumulate)
        clip = self.optimizer_config.clip or math.inf  # infinity: the norm alone
        norm = full_tensor(self.accelerator.clip_grad_norm_(self.module.parameters(), clip))
        finite = self.skipped.judge(norm)
        self.meter.add({"gradient_norm": norm.where(finite > 0, 0)}, finite)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.ema is not None:
            # Early steps decay faster, to forget the random start: after t of them the average is over about t/10.
            _update_average(self.ema, self.objective.module, min(c.ema, (1 + step) / (10 + step)))
        self.meter.end_step(self.objective.after_step(self.ema, step))
        return rate

    def _divide_gradients(self, weight: float) -> None:
        """Divide by the mean of the processes' weights, to get the gradient of the mean over all positions."""
        # `full` makes it on the device, as in `_anywhere`.
        weights = self.processes.sum(torch.full((), weight, device=self.processes.device))
        gradients = [local(p.grad) for p in self.module.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, weights / self.processes.world)

    def _report(self, step: int, log: Log) -> dict[str, float]:
        """Evaluate, and make a contact sheet on the first process; on a GPU in the precision of the run."""
        self.watch.now(step, "evaluating")
        best = self.full(self.best)
        was_training = best.training
        best.eval()
        on_cpu = self.processes.device.type == "cpu"
        with torch.no_grad(), nullcontext() if on_cpu else self.accelerator.autocast():
            metrics = self.objective.evaluate(best, self.processes)
            sheet = self.objective.sheet(best) if self.processes.is_first else None
        best.train(was_training)
        if sheet is not None:
            save_png(self.run / "samples" / f"step-{step:08d}.png", sheet)
        if metrics:
            log.write(step, metrics)
        return metrics

    def full(self, module: nn.Module) -> nn.Module:
        """The module; of a sharded one a copy with the full weights, gathered from all processes."""
        return unsharded(module, self.meta) if self.is_sharded else module

    def _save(self, step: int) -> None:
        self._check_finite(step, self.parts)
        if self.is_sharded or self.processes.is_first:
            self.checkpoints.save(step)

    def _keep(self, step: int) -> None:
        """Write a milestone: the weights of this step, which no later step removes."""
        self._check_finite(step, self.parts)
        kept = {"": self.best} if self.ema is None else {"": self.best, "-without-ema": self.objective.module}
        for suffix, module in kept.items():
            full = self.full(module)
            if self.processes.is_first:
                self.objective.save(full, milestone_path(self.run, step, suffix))

    def _check_finite(self, step: int, parts: Mapping[str, Part] | None = None) -> None:
        """Raise InputError if losses or gradients since the last log line, or tensors of `parts`, are not finite."""
        if name := self.meter.not_finite() or self.skipped.too_many() or not_finite(parts or {}):
            with suppress(InputError):
                self.checkpoints.wait()
            good = latest_checkpoint(self.run)
            raise InputError(
                f"{name} is not finite at step {step}; "
                f"{f'the last good checkpoint is {good}' if good else 'there is no checkpoint yet'}: "
                "lower optimizer.learning_rate or optimizer.clip, or train in float32"
            )

    def _anywhere(self, flag: bool) -> bool:
        """Whether `flag` is set on any process: all must stop after the same step, or the rest would wait for ever."""
        if self.processes.world == 1:
            return flag
        # `full` makes it on the device: a copy from the host would wait for all queued kernels.
        self.flags.append(self.processes.sum(torch.full((), float(flag), device=self.processes.device)))
        # On a GPU read the sum of two steps ago, which is there by now.
        return len(self.flags) > (0 if self.processes.device.type == "cpu" else 2) and bool(self.flags.popleft())

    def _stop(self, step: int) -> NoReturn:
        self.checkpoints.wait()
        self.processes.wait()  # torchrun ends all processes when the first one exits, also those that still write
        if self.processes.is_first:
            where = latest_checkpoint(self.run)
            how = "the same command" if self.config.resume else "--loop.resume true"
            print(f"Stopped after step {step}; continue with {how} ({where})", file=sys.stderr)
        raise KeyboardInterrupt


@torch.no_grad()
def _update_average(ema: nn.Module, module: nn.Module, decay: float) -> None:
    now = [local(p.detach()) for p in module.parameters()]
    torch._foreach_lerp_([local(p) for p in ema.parameters()], now, 1 - decay)
