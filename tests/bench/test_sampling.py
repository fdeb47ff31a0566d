import time

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ctf.bench import Machine, measure_sampling, measure_stage
from ctf.bench.sampling import batch_parts, decoder_work, overlapped_speed, time_parts
from ctf.layout import Layout
from ctf.models import Compute
from ctf.sampling import Sampling
from ctf.stages import generate_tokens
from ctf.stages.cost import drawing_work, sampling_memory
from ctf.tokenizer import TokenizerConfig, VQTokenizer

FLOAT32 = Compute("float32")


def a_machine(bandwidth):
    """A machine of which only the memory takes time."""
    return Machine("", 1, bandwidth, matrix_rate=float("inf"), products="", software="", date="")


@pytest.mark.parametrize("kind", ["baseline", "cluster", "full"])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_the_parts_make_the_pipelines_images(make_pipeline, kind, cfg_scale):
    pipeline = make_pipeline(kind)
    pipeline.stages[0].sampling = Sampling(cfg_scale, temperature=1.1)
    parts, result = batch_parts(pipeline.packed(), 3), None
    assert list(parts) == [stage.name for stage in pipeline.stages]
    for part in [*parts.values(), pipeline.decode]:
        result = part(result)
    assert np.array_equal(result, np.concatenate([*pipeline.generate([0, 1, 2], seed=[0, 1, 2])]))


def test_each_part_gets_its_own_seconds():
    def part(duration):
        def run(before):
            time.sleep(duration)
            return (before or 0) + duration

        return run

    results = []
    start = time.monotonic()
    seconds = time_parts({"a": part(0.02), "b": part(0.06), "c": results.append}, torch.device("cpu"))
    wall = time.monotonic() - start
    assert results == [0.02 + 0.06]
    assert seconds["a"] >= 0.02
    assert seconds["b"] >= 0.06
    assert seconds["a"] + seconds["b"] + seconds["c"] == pytest.approx(seconds["all"])
    assert seconds["all"] <= wall


def test_overlapped_speed_is_that_of_all_batches(monkeypatch, make_pipeline):
    pipeline, sizes = make_pipeline("cluster"), []
    decode = pipeline.decode
    monkeypatch.setattr(
        pipeline, "decode", lambda tokens: sizes.append(len(tokens)) or time.sleep(0.2) or decode(tokens)
    )
    start = time.monotonic()
    speed = overlapped_speed(pipeline, 3, 2)
    assert sizes == [3, 3]
    assert 6 / (time.monotonic() - start) <= speed <= 6 / 0.4


@pytest.mark.parametrize("kind", ["baseline", "cluster"])
def test_speed_is_that_of_the_batches_that_were_made(monkeypatch, make_pipeline, kind):
    pipeline, decode = make_pipeline(kind), make_pipeline(kind).decode
    monkeypatch.setattr(pipeline, "decode", lambda tokens: time.sleep(0.3) or decode(tokens))
    start = time.monotonic()
    speed = measure_sampling(pipeline, 4, 2, a_machine(1.0), a_machine(1.0))
    wall = time.monotonic() - start
    stages = [stage.name for stage in pipeline.stages]
    assert list(speed.seconds) == list(speed.roofline_seconds) == [*stages, "decoding", "all"]
    assert speed.seconds["decoding"] >= 0.3
    assert all(0 < speed.seconds[name] < 0.3 for name in stages)
    assert speed.images_per_second * speed.seconds["all"] == pytest.approx(4)
    assert speed.first_call_seconds + speed.seconds["all"] <= wall
    assert speed.parameters == [sum(p.numel() for p in stage.parameters()) for stage in pipeline.stages]


def test_the_decoder_has_the_roofline_of_its_own_products(make_pipeline):
    slow, fast = a_machine(1.0), a_machine(2.0)
    same, mixed = (
        measure_sampling(make_pipeline("cluster"), 1, 1, slow, other).roofline_seconds for other in (slow, fast)
    )
    assert mixed["decoding"] == same["decoding"] / 2
    assert (mixed["coarse"], mixed["fine"]) == (same["coarse"], same["fine"])
    assert mixed["all"] == sum(mixed[name] for name in ("coarse", "fine", "decoding"))


@pytest.mark.parametrize("kind", ["autoregressive", "any_order", "masked"])
def test_a_stage_alone_is_measured_in_its_own_steps(make_stage, kind):
    settings = {} if kind == "autoregressive" else {"steps": 3}
    sampling = Sampling(2.0, temperature=1.1, **settings)
    stage = make_stage(kind, name="only", sampling=sampling, **({"rounds": "any"} if kind == "masked" else {}))
    start = time.monotonic()
    speed = measure_stage(stage, 4, 2, FLOAT32, a_machine(2.0))
    wall = time.monotonic() - start
    assert speed.seconds == dict.fromkeys(("only", "all"), speed.seconds["all"])
    assert speed.first_call_seconds + speed.seconds["all"] <= wall
    assert speed.images_per_second * speed.seconds["all"] == pytest.approx(4)
    read = [step.bytes for step in drawing_work(stage, 4, sampling, FLOAT32)]
    assert len(read) == (6 if kind == "autoregressive" else 3)
    assert speed.roofline_seconds == pytest.approx({"only": sum(read) / 2, "all": sum(read) / 2})
    assert speed.predicted_bytes == sampling_memory([(stage, sampling)], 4, FLOAT32)
    drawn = batch_parts([stage.pack(FLOAT32)], 4)["only"](None)
    assert torch.equal(drawn, generate_tokens(stage, torch.arange(4), range(4), **vars(sampling)))


@pytest.mark.parametrize(("multipliers", "patch_size"), [((1,), 4), ((1, 2), 1)])
def test_decoder_work_is_what_the_decoder_does_with_a_batch(multipliers, patch_size):
    sizes = {"base_channels": 32, "channel_multipliers": multipliers, "z_channels": 32, "patch_size": patch_size}
    config = TokenizerConfig(**sizes, encoder_blocks=1, decoder_blocks=1, codebook_size=16, codebook_dim=4)
    tokenizer = VQTokenizer(config).eval()
    work = decoder_work(tokenizer, Layout((2, 3)), 3)
    # PyTorch does not know the operations of a CPU's fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        tokenizer.decode(torch.zeros(3, 6, dtype=torch.int64), Layout((2, 3)))
    assert work.operations == counter.get_total_flops()
    parts = {"decoder", "post_quant_conv"}
    assert work.bytes == sum(p.nbytes for name, p in tokenizer.named_parameters() if name.split(".")[0] in parts)
