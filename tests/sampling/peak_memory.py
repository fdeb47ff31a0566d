"""Run in a process of its own: sample one batch with random weights; print predicted and measured added memory."""

import json
import re
import sys
from pathlib import Path

import psutil
import torch

from ctf.models import Transformer, TransformerConfig
from ctf.pipeline import Pipeline
from ctf.tokenizer import TokenizerConfig, VQTokenizer

batch = int(sys.argv[1])
tokenizer = VQTokenizer(TokenizerConfig(base_channels=32, codebook_size=2048)).eval()
config = TransformerConfig.of_size("micro", input_vocab=2048, output_vocab=2048, grid=(8, 8), num_classes=2)
pipeline = Pipeline(tokenizer, ["a", "b"], baseline=Transformer(config).eval())

before = psutil.Process().memory_info().rss
with torch.inference_mode():
    for _ in pipeline.generate([0] * batch, batch_size=batch):
        pass
# Of this program alone: what `getrusage` says begins with the process that started it.
peak = 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
print(json.dumps({"predicted": pipeline.memory(batch).peak, "measured": peak - before}))
