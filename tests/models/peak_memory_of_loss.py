"""Run in a process of its own: the loss of a head and its gradients; print the bytes that they add at their peak.

    python tests/models/peak_memory_of_loss.py parts 4096 768 16384

Arguments: "parts" for `linear_cross_entropy`, "logits" for all logits at once; positions, dim, vocabulary.
"""

import re
import sys
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

from ctf.models import linear_cross_entropy

method, (n, dim, vocabulary) = sys.argv[1], map(int, sys.argv[2:])
hidden, weight = torch.randn(n, dim).requires_grad_(), torch.randn(vocabulary, dim).mul_(0.02).requires_grad_()
targets = torch.randint(vocabulary, (n,))
linear_cross_entropy(hidden[:64], weight, targets[:64]).mean().backward()  # libraries make their threads
hidden.grad = weight.grad = None

before = psutil.Process().memory_info().rss
if method == "parts":
    loss = linear_cross_entropy(hidden, weight, targets).mean()
else:
    loss = F.cross_entropy(hidden @ weight.T, targets)
loss.backward()
peak = 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
print(peak - before)
