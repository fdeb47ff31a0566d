"""Where the time of one decoding step goes: each part alone, and the whole step.

    THP_MEM_ALLOC_ENABLE=1 python benchmarks/decoding_parts.py

GPT-B, vocabulary 16,384, 8 rows (4 guided images), 128 positions filled, float32 and int8 weights, on the CPU.
Milliseconds, median of 15. A part alone finds its instructions in the cache, in a step they were driven out by weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ctf.bench.machine import measure_machine, seconds
from ctf.layout import Layout
from ctf.models import Compute, KeyValueCache, PackedTransformer, Transformer, TransformerConfig
from ctf.models.attention import attend_all
from ctf.models.cache import attend_by_products
from ctf.models.rotary import rotate

ROWS, FILLED = 8, 128


def milliseconds(call: Callable[[], object]) -> float:
    taken = [seconds(call, torch.device("cpu")) for _ in range(17)]
    return 1000 * statistics.median(taken[2:])


@torch.inference_mode()
def measure(model: Transformer, quantize: str | None) -> dict[str, float]:
    packed, config = PackedTransformer(model, Compute("float32", quantize)), model.config
    cache = KeyValueCache(config, ROWS, packed.device, torch.float32)
    for tensor in (*cache.keys, *cache.values):
        tensor.normal_()
    x, up = torch.randn(ROWS, 1, config.dim), torch.randn(ROWS, 1, config.ffn_dim)
    q = torch.randn(ROWS, config.heads, 1, config.head_dim)
    heads = torch.randn(ROWS, 1, 2 * config.heads, config.head_dim)
    layers = list(zip(cache.keys, cache.values, strict=True))
    parts: dict[str, Callable[[], object]] = {
        "products of the blocks": lambda: [
            (b.attention.qkv(x), b.attention.out(x), b.ffn.w13(x), b.ffn.w2(up)) for b in packed.blocks
        ],
        "attention": lambda: [attend_by_products(q, k[:, :, :FILLED], v[:, :, :FILLED]) for k, v in layers],
        "attention by the fused kernel, not used": lambda: [
            attend_all(q, k[:, :, :FILLED], v[:, :, :FILLED]) for k, v in layers
        ],
        "head": lambda: packed.head(x[: ROWS // 2, 0]),
        "norms, rotation": lambda: [
            (b.attention_norm(x), b.ffn_norm(x), rotate(heads, packed.rotary[5:6])) for b in packed.blocks
        ],
        "gates and sums": lambda: [(F.silu(up) * up, x + x, x + x) for _ in packed.blocks],
        "the whole step, without the head": lambda: packed.step(x[:, 0], cache, FILLED),
    }
    return {name: milliseconds(call) for name, call in parts.items()}


def main() -> None:
    config = TransformerConfig.of_size(
        "B", input_vocab=16_384, output_vocab=16_384, layout=Layout.square(16), num_classes=1000
    )
    model = Transformer(config).eval()
    exact, rounded = measure(model, None), measure(model, "int8")
    print(measure_machine())
    print("\n| part | float32, ms | int8, ms |\n|---|---|---|")
    for name, value in exact.items():
        print(f"| {name} | {value:.1f} | {rounded[name]:.1f} |")


if __name__ == "__main__":
    main()
