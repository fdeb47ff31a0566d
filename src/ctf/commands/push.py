"""`ctf push`."""

from __future__ import annotations


def push(
    model: str,
    to: str,
    private: bool = False,
    data: str = "",
    licence: str = "",
    metrics: list[str] | None = None,
    sheet: str | None = None,
) -> None:
    """Publish a model folder on the Hugging Face Hub, in one commit.

    Log in with `hf auth login` or set HF_TOKEN. Anyone who may see it then opens it with `--model owner/name`, or one
    version of it with `owner/name@revision`.

    Example:
        ctf push --model runs/model --to owner/name --licence other --sheet runs/samples/sheet.png

    Args:
        model: a model folder. What the options below say is first added to its card and manifest.
        to: owner/name on the Hub. A model of ctf that is there is replaced, anything else is not.
        private: only its owner may see it. One that is there already stays as it is, and must be private.
        data: what it was trained on, in words.
        licence: of the weights, as the Hub abbreviates it: apache-2.0, mit, cc-by-4.0, other, …
        metrics: JSON files of figures, as `ctf evaluate samples` and `likelihood` write them.
        sheet: a contact sheet, a PNG file.
    """
    from ctf.images.sheet import png_bytes
    from ctf.model_card import About, read_metrics
    from ctf.model_folder import publish
    from ctf.samples.complete import open_picture

    figures = {name: value for path in metrics or [] for name, value in read_metrics(path).items()}
    about = About(data, licence, figures, sheet=png_bytes(open_picture(sheet)) if sheet else b"")
    print(f"{publish(model, to, private, about if about != About() else None)}: open it with --model {to}")
