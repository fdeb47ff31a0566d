"""`ctf sample`."""

from __future__ import annotations

from typing import Any, Literal


def sample(
    out: str,
    model: str = "emoji",
    labels: list[str | int] | None = None,
    num: int | None = None,
    seed: int = 0,
    sampling: dict[str, Any] | None = None,
    batch_size: int | Literal["auto"] = 64,
    label_policy: Literal["balanced", "uniform"] | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    decoder_dtype: Literal["float32", "bfloat16"] = "float32",
    quantize: Literal["int8"] | None = None,
    compile: bool = False,
    device: str = "auto",
) -> None:
    """Sample images from a model folder, alone or under torchrun. An interrupted set continues where it stopped.

    Example:
        ctf sample --labels 3 7 "noto face-smiling" --seed 0 --out runs/samples

    Args:
        out: a folder for one PNG per image and sheet.png; an .npz with `arr_0` uint8 [n, H, W, 3] and `labels`, as
            evaluators read it; or a .png for the contact sheet of the first 64. The first two come with a manifest.
        model: "emoji", "photos", a model folder or a hub id.
        labels: class names or indices; see label_policy without it. What is no number is a name as it stands;
            a name that is a number stands in quotes and brackets: '["1"]'.
        num: how many images; the labels are repeated or cut to this number. torchrun takes it for an option of its
            own unless it stands behind "--": torchrun --nproc_per_node 8 -m -- ctf.cli sample --num 50000 …
        seed: image i uses seed + i.
        sampling: settings in place of the model's own, each as an option: --cfg_scale (1 is none), --temperature
            (0 is greedy), --top_k (0 keeps all) and --top_p (1 keeps all) of the first stage; those of another stage
            with its name before them, such as --fine_temperature. Of stages that can choose: --steps, --order,
            --schedule (positions per step: cosine, arccos, uniform), --order_seed; --cfg_schedule steps lets guidance
            grow to cfg_scale from step to step.
        batch_size: images at a time; auto takes as many as memory holds, or as an interrupted set has.
        label_policy: all classes in turn, equally often (balanced, the default), or drawn at random with the seed.
        dtype: of the stages; auto is bfloat16 on a GPU and float32 elsewhere.
        decoder_dtype: of the tokenizer's decoder. LlamaGen's is float32, and so are the images that the paper's
            Table 1 is of.
        quantize: int8 weights in all stages, on a CPU.
        compile: on a CPU, compile the steps of autoregressive stages: about 30 s of warm-up and a C++ compiler; saves a
            few % (float32), 20 % (int8). A GPU always compiles.
        device: where to sample; auto is a GPU where there is one, under torchrun another for each process.
    """
    from ctf.model_folder import Pipeline
    from ctf.models.config import Compute
    from ctf.samples.generate import sample_to

    pipeline = Pipeline.from_pretrained(model, device, Compute(dtype, quantize, compile, decoder_dtype))
    if line := sample_to(pipeline, out, labels, num, seed, batch_size, sampling, label_policy, model):
        print(line)
