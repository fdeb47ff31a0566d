"""The verbs of this room."""

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
        ctf sample --labels '[3, 7, noto face-smiling]' --seed 0 --out runs/samples

    Args:
        out: a folder for one PNG per image and sheet.png; an .npz with `arr_0` uint8 [n, H, W, 3] and `labels`, as
            evaluators read it; or a .png for the contact sheet of the first 64. The first two come with a manifest.
        model: "emoji", a model folder or a hub id.
        labels: class names or indices; see label_policy without it. What is no number is a name as it stands, [no] too;
            a name that is a number stands in quotes: '["1"]'.
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
        compile: on a CPU, compile the steps of sampling: about 30 s of warm-up and a C++ compiler; saves a few %
            (float32), 20 % (int8). A GPU always compiles.
        device: where to sample; auto is a GPU where there is one, under torchrun another for each process.
    """
    from ctf.model_folder import Pipeline
    from ctf.models.config import Compute
    from ctf.samples.generate import sample_to

    pipeline = Pipeline.from_pretrained(model, device, Compute(dtype, quantize, compile, decoder_dtype))
    if line := sample_to(pipeline, out, labels, num, seed, batch_size, sampling, label_policy, model):
        print(line)


def complete(
    out: str,
    image: str,
    labels: list[str | int],
    mask: str | None = None,
    region: tuple[float, float, float, float] | None = None,
    model: str = "emoji",
    num: int | None = None,
    seed: int = 0,
    sampling: dict[str, Any] | None = None,
    batch_size: int = 64,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
) -> None:
    """Keep a part of an image and generate the rest (inpainting, outpainting).

    An autoregressive first stage continues an image from above; any_order and masked stages fill any part.

    Example:
        ctf complete --image photo.png --region '[0, 0.5, 1, 1]' --labels '[noto face-smiling]' --num 7
            --out runs/completed.png

    Args:
        out: as for `ctf sample`: a folder, an .npz, or a .png for the contact sheet, which begins with what is kept.
        image: a file. ADM's centre crop brings it to the size of the model's images.
        labels: class names or indices as for `ctf sample`, one for each completion; repeated or cut to `num`.
        mask: an image file of the same size, white where to generate.
        region: instead of a mask, the rectangle to generate: left, top, right and bottom edge as shares of the width
            and the height, from 0 to 1.
        model: "emoji", a model folder or a hub id.
        num: how many completions; one per label without it.
        seed: completion i uses seed + i.
        sampling: settings in place of the model's own, each as an option, as for `ctf sample`.
        batch_size: images at a time.
        dtype: of the stages; auto is bfloat16 on a GPU and float32 elsewhere.
        device: where to sample; auto is a GPU where there is one.
    """
    from ctf.errors import InputError
    from ctf.model_folder import Pipeline
    from ctf.models.config import Compute
    from ctf.samples.complete import known_part, open_picture, region_mask
    from ctf.samples.generate import sample_to

    if (mask is None) == (region is None):
        raise InputError("give either mask or region: what to generate")
    picture = open_picture(image)
    pipeline = Pipeline.from_pretrained(model, device, Compute(dtype))
    where = open_picture(mask) if mask else region_mask(picture.size, region or ())
    known = pipeline.known_tokens(picture, where)
    before = [known_part(pipeline, known)]
    if line := sample_to(pipeline, out, labels, num, seed, batch_size, sampling, None, model, known, before):
        print(line)
