"""`ctf plan`."""

from __future__ import annotations

from typing import Literal

from ctf.errors import InputError


def plan(
    path: str,
    gpu: str = "H100",
    gpus: int = 8,
    stages: list[Literal["baseline", "coarse", "fine"]] | None = None,
    num_clusters: int = 512,
    mfu: float | None = None,
    price: float | None = None,
    shard: bool | None = None,
    recompute: bool | None = None,
) -> None:
    """Parameters, operations, memory, time and cost of trainings, before anyone pays for them.

    Example:
        ctf plan configs/imagenet-256-XL.yaml --gpu H100 --gpus 8 --price 2.5

    Args:
        path: settings as `ctf train` takes them with --config. Images and tokens are counted in its token set; until
            that is there, ImageNet's at 256 pixels are taken.
        gpu: A100-40GB, A100, H100, H200, B200, L40S or RTX-4090, with the numbers of their datasheets.
        gpus: how many, over all machines.
        stages: which of the paper's to plan; all three without it, each of the file's size (the paper's
            fine stage has size L).
        num_clusters: until the coarse map is there.
        mfu: share of the datasheet's rate that the model's operations make up; 0.4 without it. `ctf bench training`
            measures yours.
        price: of a GPU and hour.
        shard: in place of the settings' `loop.shard`.
        recompute: in place of the settings' `loop.recompute`.
    """
    from ctf.bench.gpus import UTILISATION, find_gpu
    from ctf.commands.parser import read_settings
    from ctf.experiments.plan import SETTINGS_OF, Cluster, plan_page

    cluster = Cluster(find_gpu(gpu), gpus, UTILISATION if mfu is None else mfu, price)
    every = SETTINGS_OF if stages is None else stages
    configs = {}
    for name in every:
        try:
            configs[name] = read_settings(SETTINGS_OF[name], path, out="", tokens="")
        except InputError as error:
            if stages is not None:
                raise
            raise InputError(f"{path} is not for all stages ({name}: {error}): name some with --stages") from None
    print(plan_page(path, configs, num_clusters, cluster, shard=shard, recompute=recompute))
