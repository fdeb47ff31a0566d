"""Datasheets of GPUs, for `ctf plan` and for comparison with measurements."""

from __future__ import annotations

from dataclasses import dataclass

from ctf.errors import InputError

#: Model-FLOPs utilisation (MFU) that a plan assumes: the share of the rate of large products that is sustained.
UTILISATION = 0.4


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as `--gpu` takes it.
        bfloat16: operations per second in dense bfloat16 products, without sparsity.
        memory: bytes; a datasheet's GB is counted as 10⁹ of them.
        source: the datasheet.
    """

    name: str
    bfloat16: float
    memory: float
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40GB", 312e12, 40e9, "NVIDIA A100 Tensor Core GPU datasheet (2021), SXM"),
        Gpu("A100", 312e12, 80e9, "NVIDIA A100 Tensor Core GPU datasheet (2021), SXM 80 GB"),
        Gpu("H100", 989e12, 80e9, "NVIDIA H100 Tensor Core GPU datasheet (2023), SXM"),
        Gpu("H200", 989e12, 141e9, "NVIDIA H200 Tensor Core GPU datasheet (2024), SXM"),
        Gpu("B200", 2.25e15, 180e9, "NVIDIA DGX B200 datasheet (2024), an eighth of the system"),
        Gpu("L40S", 362e12, 48e9, "NVIDIA L40S datasheet (2023)"),
        Gpu("RTX-4090", 165.2e12, 24e9, "NVIDIA Ada GPU architecture whitepaper (2022), FP32 accumulate"),
    )
}

#: CUDA's names without "NVIDIA ". The whole name must fit: H100 PCIe, H200 NVL, laptops and MIG slices are slower.
DEVICES = {
    "A100-SXM4-40GB": "A100-40GB",
    "A100-PCIE-40GB": "A100-40GB",
    "A100-SXM4-80GB": "A100",
    "H100 80GB HBM3": "H100",
    "H200": "H200",
    "B200": "B200",
    "L40S": "L40S",
    "GeForce RTX 4090": "RTX-4090",
}


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`. Raises InputError if there is none."""
    if name not in GPUS:
        raise InputError(f"GPU {name!r} is not in the list: choose one of {', '.join(GPUS)}")
    return GPUS[name]


def gpu_of_device(name: str) -> Gpu | None:
    """The GPU that `torch.cuda.get_device_name` calls `name`; None for others and for CPUs."""
    known = DEVICES.get(name.removeprefix("NVIDIA "))
    return None if known is None else GPUS[known]
