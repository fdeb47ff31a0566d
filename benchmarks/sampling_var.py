"""Sampling beside VAR's public `autoregressive_infer_cfg`, in one run, on the same random weights.

    git clone https://github.com/FoundationVision/VAR
    python benchmarks/sampling_var.py --var VAR --batch_sizes 1 8

d16 over 4,096 tokens on ten scales up to 16 × 16, 680 positions, on the CPU in float32, with the settings of VAR's FID:
cfg 1.5, top-k 900, top-p 0.96. The two take turns; each time is the median of `--runs` whole generations, in seconds of
the processor over all threads, which other work on the machine changes little. The decoder is not part of it. Before
anything is timed, greedy samples of both must be equal, token by token, which also packs and warms up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ctf.bench.machine import measure_machine
from ctf.interop import var
from ctf.models import Compute
from ctf.reporting.tables import table_head, table_row
from ctf.stages import generate_tokens

WAYS = {"float32": Compute("float32"), "bfloat16": Compute("bfloat16"), "int8": Compute("float32", "int8")}
FID = {"top_k": 900, "top_p": 0.96}


def reference_of(depth: int) -> torch.nn.Module:
    """VAR of random weights that lead to distinct tokens, and a tokenizer whose few channels are not timed."""
    from models.var import VAR
    from models.vqvae import VQVAE

    torch.manual_seed(0)
    tokenizer = VQVAE(vocab_size=4096, z_channels=32, ch=32, test_mode=True, share_quant_resi=4)
    sizes = {"depth": depth, "embed_dim": 64 * depth, "num_heads": depth}
    network = VAR(vae_local=tokenizer, **sizes, shared_aln=False, attn_l2_norm=True)
    network.init_weights(init_adaln_gamma=0.5, init_head=1, init_std=-1)
    return network.eval()


def tokens_by_var(network: torch.nn.Module, labels: Tensor, **filters: float) -> Tensor:
    """Tokens (B, N) that VAR samples for `labels`."""
    from models import var as module

    found: list[Tensor] = []  # (B, p², 1) of each scale
    drawn, decode = module.sample_with_top_k_top_p_, network.vae_proxy[0].fhat_to_img

    def keep(*arguments: object, **settings: object) -> Tensor:
        found.append(drawn(*arguments, **settings))
        return found[-1]

    module.sample_with_top_k_top_p_, network.vae_proxy[0].fhat_to_img = keep, torch.clone
    try:
        network.autoregressive_infer_cfg(len(labels), labels, g_seed=0, cfg=1.5, **filters)
    finally:
        module.sample_with_top_k_top_p_, network.vae_proxy[0].fhat_to_img = drawn, decode
    return torch.cat(found, 1)[:, :, 0]


def cpu_seconds(call: Callable[[], object]) -> float:
    """Time that the processor's cores spend on one call, together."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--var", required=True, help="a clone of VAR's repository")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--ways", nargs="+", default=["float32"], choices=WAYS)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.var)
    reference = reference_of(arguments.depth)
    tokenizer = var.load_tokenizer(reference.vae_proxy[0].state_dict())
    stage = var.load_var(reference.state_dict(), tokenizer)
    packed = {f"ctf, {way}": stage.pack(WAYS[way]) for way in arguments.ways}
    guided = {"cfg_scale": 2.5, "cfg_schedule": "steps"}

    print(measure_machine())
    labels = torch.tensor([7, 985])
    greedy = generate_tokens(stage.pack(Compute("float32")), labels, [0, 1], temperature=0, **guided)
    equal = greedy == tokens_by_var(reference, labels, top_k=1)
    if not equal.all():
        raise SystemExit(f"{int((~equal).sum())} of {equal.numel()} greedy tokens differ")
    print("", *table_head(["batch", "sampler", "CPU s a batch", "CPU s an image", "against VAR"], 2), sep="\n")
    for batch in arguments.batch_sizes:
        labels = torch.arange(batch)
        calls: dict[str, Callable[[], object]] = {"VAR, float32": lambda y=labels: tokens_by_var(reference, y, **FID)}
        for name, fast in packed.items():
            calls[name] = lambda p=fast, y=labels: generate_tokens(p, y, range(len(y)), **guided, **FID)
        rounds = [{name: cpu_seconds(call) for name, call in calls.items()} for _ in range(arguments.runs)]
        medians = {name: statistics.median(taken[name] for taken in rounds) for name in calls}
        for name, median in medians.items():
            ratio = medians["VAR, float32"] / median
            print(table_row([str(batch), name, f"{median:.2f}", f"{median / batch:.2f}", f"{ratio:.2f} ×"]), flush=True)


if __name__ == "__main__":
    main()
