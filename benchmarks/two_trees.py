"""Seconds of the bundled model's stages in two checkouts, taking turns.

    python benchmarks/two_trees.py OLD NEW --rounds 6

Processor seconds of one thread, the least of several calls in each process; of all processes of a tree the least and
the median. Both trees run with this interpreter's packages.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

CALLS = """
import json, time, torch
import ctf
from ctf.sampling import Random
torch.set_num_threads(1)
pipe, taken = ctf.Pipeline.from_pretrained("emoji", "cpu"), {}
settings = pipe.sampling()
for batch, calls in ((4, 8), (64, 4)):
    labels, given = torch.arange(batch), None
    for place, stage in enumerate(pipe.packed()):
        def call():
            start = time.process_time()
            drawn = stage.generate(labels, Random(range(batch), place), settings[stage.name], given)
            return drawn, time.process_time() - start
        results = [call() for _ in range(calls)]
        taken[f"{stage.name}, batch {batch}"] = min(seconds for _, seconds in results)
        given = results[0][0]
print(json.dumps(taken))
"""


def seconds(tree):
    environment = {**os.environ, "PYTHONPATH": f"{tree}/src", "OMP_NUM_THREADS": "1"}
    return json.loads(
        subprocess.run([sys.executable, "-c", CALLS], env=environment, capture_output=True, check=True).stdout
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs=2)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    found = {tree: [] for tree in arguments.trees}
    for number in range(arguments.rounds):
        for tree in arguments.trees[:: 1 if number % 2 == 0 else -1]:
            found[tree].append(seconds(tree))
    for part in found[arguments.trees[0]][0]:
        times = [[1e3 * run[part] for run in found[tree]] for tree in arguments.trees]
        print(f"{part}: " + ", ".join(f"{min(each):.1f} ms (median {statistics.median(each):.1f})" for each in times))
