"""Decide what `ctf fit` does: from the images, the device and the time that there is."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from time import monotonic

import torch

from ctf.errors import InputError
from ctf.fit.config import NEW, NOTHING, FitConfig
from ctf.fit.measure import bundled_tokenizers, compare_tokenizers, measure_times
from ctf.fit.plan import SYSTEMS, Plan, check_classes, files_of
from ctf.fit.recipes import RECIPES, tokenizer_to_train
from ctf.fit.stages import brings_tokenizer, plan_stages, size_of, stages_to_start_from
from ctf.images.image_set import MADE_SPLITS, every_tenth, open_images, splits_overlap
from ctf.interop.tokenizers import open_tokenizer
from ctf.model_folder import find_model
from ctf.progress import duration
from ctf.tokenizer.config import scales_up_to
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.registry import BUNDLED, new_tokenizer
from ctf.tokens.tokenize import Augmentation
from ctf.training.config import check_settings

#: Below this PSNR in dB a tokenizer loses what a photograph shows: 19.6 dB is fog, at 22.5 dB objects can be named.
POOR_PSNR = 20.0
#: Steps of 32 photographs after which a new tokenizer of 16 × 16 tokens reached 22.9 dB (benchmarks/tokenizer.md).
NEW_STEPS = 1_500
#: Differences between bundled tokenizers that do not pay for more tokens, which make each step of the stages longer.
NEAR = {"psnr": 1.0, "lpips": 0.03}
#: How trainings share the time that is left for them.
SHARES = {"tokenizer": 0.45, "coarse": 0.33, "fine": 0.22, "baseline": 0.33}
#: Views of an image that are turned into tokens: the most that take at most a share of the time, or else the image.
VIEWS: dict[Augmentation, int] = {"ten-shift": 10, "flip": 2, "none": 1}
VIEWS_SHARE = 0.1
#: Held-out images are measured in at most this share of the time, or else as many of them, chosen at random.
MEASURING_SHARE, FEWEST_MEASURED = 0.05, 100
#: Passes over the images after which more teach next to nothing, or only the images by heart.
MOST_EPOCHS = {"tokenizer": 100, "coarse": 120, "fine": 80, "baseline": 120}
FEWEST_STEPS = 20


def parse_time(text: str) -> float:
    """ "90s", "30m", "2h" or "1.5h" in seconds. Raises InputError: anything else."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*([smh])", text.strip())
    if not found or not float(found[1]):
        raise InputError(f"time {text!r}: give seconds, minutes or hours, such as 90s, 30m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def choose(config: FitConfig, device: torch.device, started: float | None = None) -> Plan:
    """Decide what `config` leaves open, and say what is measured for it.

    Bundled tokenizers are compared on a hundred of the images. A little of all work is timed here and now, with models
    of the sizes chosen, and as many steps are planned as fit into the time, or fewer where more would teach nothing.
    The time counts from `started`, a value of `time.monotonic()`, or from this call.

    Raises:
        InputError: images that cannot be opened, a split to hold out that would be trained on, or a tokenizer or
            stages to start from that do not fit.
    """
    check_settings(config, "", ("image_size", "num_clusters", "batch_size"), "at least 1", lambda x: x >= 1)
    parse_time(config.time)  # refuses what is no time before anything is opened
    return Task(config, device, monotonic() if started is None else started).choose()


class Task:
    """What decisions follow from: what was asked for, the images, and what bundled tokenizers keep of them.

    Attributes:
        config: as asked.
        device: where to train.
        image_size: pixels per side.
        images: of the split to train on, those held out of it included.
        test: those for the report's figures.
        held_out_split: the split that `test` is; None if it is `images`.
        count: of the images to train on.
        tokenizers: the bundled ones that suit the image size, by name.
        bundled: their PSNR, and LPIPS if asked for, on `test`.
        started: when the time began, by `time.monotonic()`.
        opening: seconds that it took to open the images.
    """

    def __init__(self, config: FitConfig, device: torch.device, started: float) -> None:
        self.config, self.device, self.started = config, device, started
        self.image_size = size = config.image_size or (256 if self.on_gpu else 64)
        before = monotonic()
        self.images = self.test = open_images(config.images, config.split, size)
        split, self.held_out_split, self.count = config.split, config.held_out_split, len(self.images)
        if split is self.held_out_split is None:
            if num_held_out := int(every_tenth(self.images.labels).sum()):
                self.held_out_split, self.count = MADE_SPLITS[0], self.count - num_held_out
        elif self.held_out_split is not None and splits_overlap(split, self.held_out_split):
            raise InputError(
                f"held_out_split {self.held_out_split}: name another split to train on, such as --split train, or give "
                f"--split {MADE_SPLITS[1]} --held_out_split {MADE_SPLITS[0]}"
            )
        if self.held_out_split is not None:
            self.test = open_images(config.images, self.held_out_split, size)
            check_classes(self.images, self.test, self.held_out_split)
        self.opening = monotonic() - before
        self.tokenizers = bundled_tokenizers(size)
        if self.tokenizers:
            print(f"Comparing the bundled tokenizers {' and '.join(self.tokenizers)} on the images …", flush=True)
        self.bundled = compare_tokenizers(self.tokenizers, self.test, device, config.lpips)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def kept(self) -> str:
        """What bundled tokenizers keep, in words."""
        said = []
        for name, kept in self.bundled.items():
            said.append(f"{name} {kept['psnr']:.1f} dB" + (f", LPIPS {kept['lpips']:.3f}" if "lpips" in kept else ""))
        return "; ".join(said)

    def best_of(self, names: list[str]) -> str:
        """The bundled tokenizer that keeps the images best, or one with fewer tokens that is `NEAR` it."""
        metric = "lpips" if self.config.lpips else "psnr"
        loss = {name: self.bundled[name][metric] * (1 if metric == "lpips" else -1) for name in names}
        near = [name for name in names if loss[name] <= min(loss.values()) + NEAR[metric]]
        tokens = {name: self.tokenizers[name].layout((self.image_size,) * 2).num_tokens for name in near}
        return min(near, key=lambda name: (tokens[name], loss[name]))

    def choose(self) -> Plan:
        """The plan with the tokenizer that was asked for, or else with the one that keeps the images best."""
        asked, start = self.config.tokenizer, self.config.start_from
        if asked is not None:
            return self.plan(asked, f"the tokenizer {asked} was asked for")
        if start not in (None, NOTHING) and brings_tokenizer(start):
            source = start if start in BUNDLED else str(find_model(start))
            return self.plan(source, f"the tokenizer is that of {start}")
        family = self.config.family
        suited = [name for name in self.bundled if family in (None, self.tokenizers[name].family)]
        if not suited:
            size, of_family = f"{self.image_size} × {self.image_size}", f" of the family {family}" if family else ""
            return self.plan(NEW, f"a new tokenizer, since no bundled one{of_family} suits {size} pixels")
        good = [name for name in suited if self.bundled[name]["psnr"] >= POOR_PSNR]
        best = self.best_of(good or suited)
        if good:
            return self.plan(best, f"the bundled tokenizer {best} keeps the images best for its tokens: {self.kept}")
        plan = self.plan(NEW, f"a new tokenizer, since bundled ones lose much of the images: {self.kept}")
        steps = plan.steps["tokenizer"]
        if steps >= NEW_STEPS:
            return plan
        few = f"a new one would have {steps:,} steps where it needs {NEW_STEPS:,}"
        return self.plan(best, f"the bundled tokenizer {best}, though it loses much ({self.kept}): {few}")

    def plan(self, tokenizer: str, reason: str) -> Plan:
        """The plan with this tokenizer, which `reason` explains; the steps follow from the time that they take."""
        config, architecture = self.config, None
        if tokenizer == NEW:
            family = config.family or "vq"
            if family not in RECIPES:
                raise InputError(f"family {family!r}: choose one of {', '.join(RECIPES)}, or give a tokenizer")
            architecture = tokenizer_to_train(RECIPES[family], self.image_size, self.count, self.on_gpu)
            side = self.image_size // architecture.downsampling
            own = {"scales": scales_up_to(side)} if family == "multi-scale" else {}
            used: Tokenizer = new_tokenizer(family, architecture, **own)
        else:
            used = self.tokenizers.get(tokenizer) or open_tokenizer(tokenizer)
            if config.family not in (None, used.family):
                raise InputError(f"tokenizer {tokenizer} is of the family {used.family}: leave family out")
        recipe = RECIPES.get(used.family, RECIPES["vq"])
        num_clusters = max(2, used.codebook_size // recipe.tokens_per_cluster)
        names = [*SYSTEMS["coarse-to-fine"], *(SYSTEMS["baseline"] if config.baseline else ())]
        others, start, why = stages_to_start_from(config, tokenizer, used)
        size = config.size or ("B" if self.on_gpu else "micro" if parse_time(config.time) >= 1800 else "nano")
        stages = plan_stages(others, recipe, size_of(others[0]) if others else size, names)
        if others and (clusters := others[0].predicts):
            num_clusters = clusters.num_coarse
        return self.timed(
            Plan(
                images=config.images,
                split=config.split,
                held_out_split=self.held_out_split,
                image_size=self.image_size,
                num_images=len(self.images),
                num_test=len(self.test),
                evaluated=len(self.test),
                augmentation="none",
                tokenizer=tokenizer,
                family=used.family,
                architecture=architecture,
                layout=used.layout((self.image_size, self.image_size)),
                start_from=start,
                num_clusters=config.num_clusters or num_clusters,
                stages=stages,
                batch_size=config.batch_size or min(256 if self.on_gpu else 32, max(2, self.count)),
                tokenizer_batch=min(64 if self.on_gpu else 32, max(2, self.count)),
                steps=dict.fromkeys([*(["tokenizer"] if tokenizer == NEW else []), *names], 1),
                seed=config.seed or 0,
                seconds={},
                bundled=self.bundled,
                reasons=(reason, why),
                files=files_of(self.images, self.test),
            ),
            used,
        )

    def timed(self, plan: Plan, tokenizer: Tokenizer) -> Plan:
        """`plan` with the views of the images, the steps and the measured images that fit into the time."""
        print(f"Timing a little of {', '.join(plan.parts)} …", flush=True)
        time, count = parse_time(self.config.time), self.count
        took = measure_times(plan, self.images, tokenizer, self.device)
        numbers: dict[Augmentation, int] = VIEWS if self.config.flip else {"none": 1}
        views = {name: count * (took.read + number * took.encode) for name, number in numbers.items()}
        augmentation: Augmentation = next((name for name in views if views[name] <= VIEWS_SHARE * time), "none")
        to_tokens = took.read + took.encode + took.reconstruct
        measured = max(FEWEST_MEASURED, int(MEASURING_SHARE * time / (to_tokens + took.score)))
        measured = min(plan.num_test, measured)
        seconds = took.beside | {
            "tokens": self.opening + views[augmentation] + measured * to_tokens,
            "clusters": took.clusters,
            "report": measured * took.score + took.report,
            "planning": monotonic() - self.started,
        }
        left, shares = time - sum(seconds.values()), sum(SHARES[name] for name in plan.steps)
        steps, passes = {}, 0.0
        for name in plan.steps:
            # Stage 1 and the baseline have the same number, for a fair comparison.
            alike = ("coarse", "baseline") if plan.baseline and name in ("coarse", "baseline") else (name,)
            each, share = (sum(of[n] for n in alike) for of in (took.steps, SHARES))
            one_pass = count / (plan.batch_size if name in plan.stages else plan.tokenizer_batch)
            most = math.ceil(MOST_EPOCHS[name] * one_pass)
            steps[name] = max(FEWEST_STEPS, min(most, int(share / shares * left / each)))
            passes = max(passes, one_pass * each * shares / share)
        fixed = sum(seconds.values())
        for name, number in steps.items():
            seconds[name] += number * took.steps[name]
        reasons = plan.reasons
        if (total := sum(seconds.values())) > 1.1 * time:
            reasons += (
                f"--time {self.config.time} is too short: the shortest plan takes {duration(total)}, and only from "
                f"{duration(max(total, fixed + passes))} on does each training see every image",
            )
        elif fixed + passes > 1.1 * time:
            reasons += (f"only from {duration(fixed + passes)} on does each training see every image",)
        return replace(
            plan,
            steps=steps,
            augmentation=augmentation,
            evaluated=measured,
            seconds={name: round(seconds[name], 1) for name in ("planning", *plan.parts)},
            reasons=reasons,
        )
