"""How long the web app of `ctf app` takes: to its first image after a cold start, and for 16 images after that.

python benchmarks/page.py [--starts 3]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import httpx

PORT = 7901


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=3)
    for start in range(parser.parse_args().starts):
        port, since = PORT + start, time.perf_counter()
        page = subprocess.Popen(
            [sys.executable, "-m", "ctf.cli", "app", "--port", str(port)], stdout=subprocess.DEVNULL
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            try:
                while not answers(client):
                    time.sleep(0.05)
                up = time.perf_counter() - since
                generate(client, 1)
                first, began = time.perf_counter() - since, time.perf_counter()
                generate(client, 16)
                sixteen = time.perf_counter() - began
            finally:
                page.terminate()
                page.wait()
        print(f"page after {up:.1f} s, first image after {first:.1f} s; 16 images in {sixteen:.2f} s")


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/").is_success
    except httpx.TransportError:
        return False


def generate(client: httpx.Client, num: int) -> None:
    """Ask for images as a program does, and wait for the last one."""
    asked = client.post("/gradio_api/call/v2/generate", json={"num": num, "seed": 0}).raise_for_status()
    with client.stream("GET", f"/gradio_api/call/generate/{asked.json()['event_id']}") as stream:
        if "event: complete" not in stream.read().decode():
            raise SystemExit("the web app did not answer with images")


if __name__ == "__main__":
    main()
