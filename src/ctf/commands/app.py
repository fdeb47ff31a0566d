"""`ctf app`."""

from __future__ import annotations

from typing import Literal


def app(
    model: str = "emoji",
    against: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    root_path: str = "",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
) -> None:
    """Open a web app for a model: generate, complete, swap within clusters, look at the codebook.

    Example:
        ctf app --model emoji --port 7860

    Args:
        model: "emoji", "photos", a model folder or a hub id.
        against: another model of the same classes, shown beside it on request, with the same seeds.
        host: the address to listen on. Without it the web app is for this machine only; 0.0.0.0 lets everyone in who
            reaches it.
        port: 0 takes a free one.
        root_path: where a reverse proxy shows the web app, such as /ctf for https://example.org/ctf/.
        dtype: of the stages; auto is bfloat16 on a GPU and float32 elsewhere.
        device: where to sample; auto is a GPU where there is one.
    """
    from ctf.app.sampler import Sampler
    from ctf.app.server import checked_root_path, listen, serve
    from ctf.app.studio import Studio
    from ctf.model_folder import Pipeline
    from ctf.models.config import Compute

    sources, root_path = [model] if against is None else [model, against], checked_root_path(root_path)
    with listen(host, port) as socket:
        samplers = []
        for source in sources:
            print(f"Loading {source} …", flush=True)
            samplers.append(Sampler.of(Pipeline.from_pretrained(source, device, Compute(dtype)), source))
        print("Starting the web app …", flush=True)
        studio = Studio(*samplers)
        serve(studio, socket, lambda address: print(f"{model} is at {address} (Ctrl-C ends it)", flush=True), root_path)
