"""Stage-1 decoding beside LlamaGen's public `generate`, in one run, on the same random weights.

    git clone https://github.com/FoundationVision/LlamaGen
    python benchmarks/sampling_llamagen.py --llamagen LlamaGen --batch_sizes 4 64

GPT-B with a vocabulary of 16,384, 256 tokens, guidance 2, temperature 1, no filters, on the CPU. The two take turns;
each time is the median of `--runs` whole generations. What the first call takes beyond that, to pack the weights
and to compile, is a column of its own; LlamaGen's is preceded by a shortened one. The VQ decoder is not part of it.
`tests/interop` proves that both decode the same tokens from the same weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ctf.bench import measure_machine
from ctf.interop import llamagen
from ctf.layout import Layout
from ctf.models import Compute
from ctf.stages import generate_tokens

WAYS = {
    "float32": Compute("float32"),
    "float32-compiled": Compute("float32", compile=True),
    "bfloat16": Compute("bfloat16"),
    "bfloat16-compiled": Compute("bfloat16", compile=True),
    "int8": Compute("float32", "int8"),
    "int8-compiled": Compute("float32", "int8", compile=True),
}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamagen", required=True, help="a clone of LlamaGen's repository")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.llamagen)
    from autoregressive.models.generate import generate
    from autoregressive.models.gpt import GPT_models

    torch.manual_seed(0)
    reference = GPT_models["GPT-B"](vocab_size=16_384, block_size=256, num_classes=1000, cls_token_num=1).eval()
    torch.nn.init.normal_(reference.output.weight, std=0.02)
    weights = {name: tensor for name, tensor in reference.state_dict().items() if "freqs" not in name}
    stage = llamagen.load_gpt(weights, layout=Layout.square(16))

    print(measure_machine())
    print("\n| batch | decoder | first call, s more | s | images/s | against LlamaGen |")
    print("|---|---|---|---|---|---|")
    for batch in arguments.batch_sizes:
        labels = torch.arange(batch) % 1000

        def by_llamagen(tokens: int = 256, labels: Tensor = labels) -> Tensor:
            return generate(reference, labels, tokens, cfg_scale=2.0, temperature=1.0, top_k=0, top_p=1.0)

        calls: dict[str, Callable[[], object]] = {"LlamaGen, float32": by_llamagen}
        first = {"LlamaGen, float32": 0.0}
        by_llamagen(8)
        for way in arguments.ways:
            start = time.perf_counter()
            packed = stage.pack(WAYS[way])
            calls[f"ctf, {way}"] = lambda p=packed, y=labels: generate_tokens(p, y, range(len(y)), cfg_scale=2.0)
            calls[f"ctf, {way}"]()
            first[f"ctf, {way}"] = time.perf_counter() - start
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(arguments.runs):
            for name, call in calls.items():
                taken[name].append(seconds(call))
        medians = {name: statistics.median(values) for name, values in taken.items()}
        for name, median in medians.items():
            ratio = medians["LlamaGen, float32"] / median
            more = max(first[name] - median, 0.0)
            print(
                f"| {batch} | {name} | {more:.1f} | {median:.2f} | {batch / median:.2f} | {ratio:.1f} × |", flush=True
            )


if __name__ == "__main__":
    main()
