"""Work of a GPU on fake tensors: a line of JSON for each part.

A part ends with an error, or with what the host would wait for and what runs without a fused kernel.
"""

import contextlib
import dataclasses
import json
import os
import time
import traceback
from collections import Counter
from pathlib import Path
from unittest.mock import MagicMock, patch

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fake_cuda import COLLECTIVES, FAKE, UNFUSED, WAITS, Host, to_fake_cuda
from tiny_runs import make_image_set, make_tokenizer_objective, tokenizer_training
from torch.nn.parallel import DistributedDataParallel, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

import ctf.stages.drawing as drawing
import ctf.training.sharding as sharding
from ctf.codebook.coarse_map import CoarseMap
from ctf.device import usable_device
from ctf.layout import Layout
from ctf.models import Compute
from ctf.models import config as sizes
from ctf.models.cluster_head import ClusterMembers
from ctf.models.loss import ClusterLoss
from ctf.sampling import Random, Sampling
from ctf.stages import NextScale, new_stage
from ctf.stages import stage as stage_file
from ctf.tokenizer import MultiScaleTokenizer
from ctf.tokenizer.decode import decode_images
from ctf.training.config import LoopConfig, OptimizerConfig
from ctf.training.loop import Trainer
from ctf.training.optimizer import build_adamw
from ctf.training.token_objective import TokenObjective

IMAGES, K, PROCESSES = 64, 1024, 8
MAP = CoarseMap(torch.arange(K) % 32, "test", 0, "none")
ClusterMembers(MAP)  # the map keeps what it computes: among fake tensors that would be fake
SQUARE, SCALES = Layout.square(2), Layout.square(1, 2)
TASKS = {
    "coarse": {"predicts": MAP},
    "fine": {"given": MAP},
    "fine, full": {"given": MAP, "support": "full"},
    "all tokens": {},
}
MULTI_SCALE = MultiScaleTokenizer.new(dataclasses.replace(tokenizer_training().model, codebook_size=K), scales=(1, 2))
sizes.MODEL_SIZES["one block"] = (1, 4, 256)


def with_values(function):
    """Positions, cluster means and ranks are numbers of the host: not fake until they are sent."""

    def call(*args):
        with _disable_current_modes():
            return function(*args)

    return call


def send_fake(tensor, device):
    with FAKE:
        return _send(tensor, device)


_send = drawing.send
stage_file.plan_groups, drawing.send = with_values(drawing.plan_groups.__wrapped__), send_fake
NextScale.plan, NextScale.take_from = with_values(NextScale.plan), with_values(NextScale.take_from)
sharding.init_device_mesh = with_values(sharding.init_device_mesh)


@contextlib.contextmanager
def part(name):
    WAITS.clear(), UNFUSED.clear()
    start, error = time.monotonic(), None
    try:
        with FAKE, Host():
            yield
    except Exception as raised:
        frames = [frame for frame in traceback.extract_tb(raised.__traceback__) if "/ctf/" in frame.filename]
        at = f"{frames[-1].filename.split('/ctf/')[-1]}:{frames[-1].lineno}: " if frames else ""
        error = f"{at}{type(raised).__name__}: {raised}"[:600]
    found = sorted({f"{at}: {what}" for what, at in [*WAITS, *UNFUSED]})
    seconds = round(time.monotonic() - start, 1)
    print(json.dumps({"part": name, "error": error, "found": found, "seconds": seconds}), flush=True)


def stage_of(kind, task, **settings):
    with _disable_current_modes():
        layout = SCALES if kind == "next_scale" else SQUARE
        extra = {"tokenizer": MULTI_SCALE} if kind == "next_scale" else {}
        facts = {"layout": layout, "num_classes": 1000, "codebook_size": K, **TASKS[task]}
        return to_fake_cuda(new_stage(kind, "one block", name="stage", **facts, **extra, **settings))


def sample(kind, task, dtype, order, **settings):
    stage = stage_of(kind, task, **settings).eval()
    given = None if stage.given is None else torch.zeros(IMAGES, stage.num_tokens, dtype=torch.int64, device="cuda")
    packed, labels = stage.pack(Compute(dtype)), torch.zeros(IMAGES, dtype=torch.int64)
    filters = {"top_k": 50, "top_p": 0.9} if dtype == "float32" else {}
    tokens = packed.generate(labels, Random(range(IMAGES)), Sampling(2.0, 1.1, **filters, **order), given)
    assert (tokens.shape, tokens.device.type) == ((IMAGES, stage.num_tokens), "cuda")


def initialise(kind, task):
    """Weights drawn on the GPU, as `ctf train` and `ctf bench` do; it waits for the table of rotary embedding."""
    extra = {"tokenizer": MULTI_SCALE} if kind == "next_scale" else {}
    facts = {"layout": SCALES if extra else SQUARE, "num_classes": 1000, "codebook_size": K, **TASKS[task]}
    stage = new_stage(kind, "one block", name="stage", **facts, **extra, device=torch.device("cuda"))
    assert {p.device.type for p in stage.transformer.parameters()} == {"cuda"}


class Tokens:
    """A token set as far as a training reads it."""

    folder, codebook_size, num_classes, class_names, fingerprint_of_codebook = "tokens", K, 1000, [], None
    num_augmentations = 1

    def __init__(self, layout):
        self.layout, self.num_tokens, self.labels = layout, layout.num_tokens, np.zeros(128, np.int64)

    def __len__(self):
        return len(self.labels)

    def gather(self, images, augmentation=0):
        return torch.zeros(len(images), self.num_tokens, dtype=torch.int64)

    def in_classes(self, names, whose):
        return self


def train(objective, batch, evaluate=False, optimizer="adamw", **loop):
    """Two steps, the second one watched: the first one makes the optimizer's state, and masks."""
    settings = {"batch_size": IMAGES, "steps": 2, "device": "cuda:0", "ema": 0.9, "precision": "bfloat16", **loop}
    trainer = Trainer(objective, Path("none"), OptimizerConfig(name=optimizer), LoopConfig(**settings))
    trainer.module.train()
    if isinstance(ddp := trainer.module, DistributedDataParallel):
        ddp.register_comm_hook(None, reduce_bucket)
        ddp.logger = MagicMock()  # asks for the times of kernels
        ddp.reducer = MagicMock(wraps=ddp.reducer, **{"_rebuild_buckets.return_value": False})  # by a list from rank 0
    for step in range(2):
        WAITS.clear(), COLLECTIVES.clear()
        trainer.step(batch, step)
    if evaluate:
        seen = [*WAITS], [*COLLECTIVES]
        with torch.no_grad(), trainer.accelerator.autocast():
            objective.evaluate(trainer.full(trainer.best).eval(), trainer.processes)
        WAITS[:], COLLECTIVES[:] = seen  # an evaluation may wait
    return trainer


def train_stage(kind, task, clusters=False, optimizer="adamw", loop=None, **settings):
    stage = stage_of(kind, task, **settings)
    with _disable_current_modes():
        loss = to_fake_cuda(ClusterLoss(MAP)) if clusters else None
    tokens = Tokens(stage.layout)
    batch = (
        torch.zeros(IMAGES, stage.num_tokens, dtype=torch.int64, device="cuda"),
        torch.zeros(IMAGES, dtype=torch.int64, device="cuda"),
    )
    return train(TokenObjective(stage, tokens, tokens, cluster_loss=loss), batch, True, optimizer, **(loop or {}))


def train_tokenizer(**settings):
    with _disable_current_modes():
        config = tokenizer_training(
            discriminator_start=1, warmup_without_codebook=0, kmeans_start=False, restart_after=0, **settings
        )
        objective = make_tokenizer_objective(make_image_set(), config)
    to_fake_cuda(objective.module), to_fake_cuda(objective.discriminator)
    optimizer = build_adamw(objective.discriminator.parameters(), config.optimizer)
    objective.discriminator_optimizer = objective.extra["discriminator_optimizer"] = optimizer
    train(objective, (torch.zeros(4, 3, 32, 32, device="cuda"),), batch_size=4)
    return objective.module


def join_processes():
    """Be the first of several: collectives take place without the others, and leave what they find."""
    facts = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    os.environ |= {name: str(value) for name, value in facts.items()}
    dist.init_process_group("fake", rank=0, world_size=PROCESSES, store=FakeStore())
    distributed._verify_param_shape_across_processes = lambda *args: None  # reads shapes that others sent


def reduce_bucket(state, bucket):
    """DDP's own reduction, whose result the fake group does not return."""
    dist.all_reduce(bucket.buffer())
    reduced = torch.futures.Future()
    reduced.set_result(bucket.buffer())
    return reduced


def train_together(kind, task, loop):
    """A step of one process of several, and how many values it exchanges."""
    trainer = train_stage(kind, task, loop={"batch_size": PROCESSES * IMAGES, **loop})
    objective, moved = trainer.objective, Counter()
    for name, dtype, count in COLLECTIVES:
        moved[name, dtype] += count
    everything = sum(p.numel() for p in objective.module.parameters())
    if not trainer.is_sharded:  # once a step, however many passes it has; single numbers beside them
        assert 0 <= moved["allreduce_", torch.float32] - everything < 10, moved
        return
    blocks = {p for block in objective.blocks(objective.module) for p in block.parameters()}
    in_blocks = sum(p.numel() for p in blocks)
    own = sum(sharding.local(p).numel() for p in objective.module.parameters())  # the last of 8 parts may be padded
    passes = trainer.config.accumulate
    assert moved["_allgather_base_", torch.bfloat16] == 2 * passes * in_blocks, moved  # forward and backward
    assert moved["_allgather_base_", torch.float32] == passes * (PROCESSES * own - in_blocks), moved
    assert moved["_reduce_scatter_base_", torch.float32] == passes * own, moved


def faults():
    """Attention over heads of 6, the sum read by the host, and a view of what does not lie in order."""
    x = torch.zeros(2, 4, 8, 6, device="cuda")
    F.scaled_dot_product_attention(x, x, x).sum().item()
    x.transpose(1, 2).view(-1)


def own_device_of_a_process():
    """The third of torchrun's."""
    with patch.dict(os.environ, LOCAL_RANK="2"), patch.object(torch.cuda, "set_device") as set_device:
        usable_device()
    set_device.assert_called_once_with(torch.device("cuda:2"))


def main():
    with part("faults"):
        faults()
    with part("the GPU of a process"):
        own_device_of_a_process()
    for kind in ("autoregressive", "any_order", "masked", "next_scale"):
        for task in ("coarse", "fine"):
            with part(f"initialise {kind}, {task}"):
                initialise(kind, task)
                WAITS.clear()  # once in a run
    for kind, task, order in (
        ("autoregressive", "coarse", {}),
        ("autoregressive", "fine, full", {}),
        ("any_order", "all tokens", {"steps": 2}),
        ("any_order", "coarse", {"steps": 2}),
        ("any_order", "fine", {"steps": 2}),
        ("masked", "coarse", {"steps": 2}),
        ("masked", "coarse", {"steps": 2, "order": "confidence"}),
        ("masked", "fine", {}),
        ("masked", "fine, full", {}),
        ("next_scale", "coarse", {}),
        ("next_scale", "fine", {}),
    ):
        for dtype, heads in (("bfloat16", {}), ("bfloat16", {"kv_heads": 1}), ("float32", {"kv_heads": 2})):
            extra = {} if kind == "next_scale" else heads
            with part(f"sample {kind}, {task}, {order}, {dtype}, {extra}"):
                sample(kind, task, dtype, order, **extra)
    for kind, task, settings in (
        ("autoregressive", "coarse", {"kv_heads": 2}),
        ("autoregressive", "all tokens", {"clusters": True}),
        ("autoregressive", "coarse", {"optimizer": "muon"}),
        ("autoregressive", "coarse", {"loop": {"recompute": True, "accumulate": 2}}),
        ("masked", "fine", {}),
        ("masked", "fine", {"loop": {"compile": True}}),
        ("masked", "fine, full", {}),
        ("masked", "coarse", {"rounds": "any"}),
        ("any_order", "coarse", {}),
        ("any_order", "fine", {"kv_heads": 2}),
        ("next_scale", "coarse", {}),
        ("next_scale", "fine", {}),
    ):
        with part(f"train {kind}, {task}, {settings}"):
            train_stage(kind, task, **settings)
    for family, settings in (("vq", {}), ("multi-scale", {"family": "multi-scale", "scales": (1, 2, 4)})):
        with part(f"train tokenizer, {family}"):
            tokenizer = train_tokenizer(**settings)
        with part(f"decode, {family}"):
            layout = tokenizer.layout((32, 32))
            decode_images(
                tokenizer.eval(),
                torch.zeros(70, layout.num_tokens, dtype=torch.int64, device="cuda"),
                layout,
                torch.bfloat16,
            )
    join_processes()
    for kind, task, loop in (
        ("any_order", "coarse", {"accumulate": 2}),
        ("masked", "fine", {}),
        ("autoregressive", "coarse", {"shard": True}),
        ("any_order", "coarse", {"shard": True, "accumulate": 2}),
        ("masked", "fine", {"shard": True, "recompute": True}),
    ):
        with part(f"train together {kind}, {task}, {loop}"):
            train_together(kind, task, loop)


if __name__ == "__main__":
    main()
