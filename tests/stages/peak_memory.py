"""Run in a process of its own: sample one batch with random weights; print predicted and measured added memory."""

import json
import re
import sys
from pathlib import Path

import psutil

from ctf.layout import Layout
from ctf.pipeline import StagePipeline
from ctf.stages import new_stage
from ctf.tokenizer import TokenizerConfig, VQTokenizer

kind, batch, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
tokenizer = VQTokenizer(TokenizerConfig(base_channels=32, channel_multipliers=(1, 1, 2), codebook_size=2048)).eval()
stage = new_stage(kind, "mini", name="a", layout=Layout.square(8), num_classes=2, codebook_size=2048)
pipeline = StagePipeline(tokenizer, ["a", "b"], [stage.eval()])

before = psutil.Process().memory_info().rss
for _ in pipeline.generate([0] * batch, batch_size=batch, **settings):
    pass
# Of this program alone: what `getrusage` says begins with the process that started it.
peak = 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
print(json.dumps({"predicted": pipeline.memory(batch, **settings).peak, "measured": peak - before}))
