"""Folders from and to the Hugging Face Hub: whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctf.errors import InputError, first_line
from ctf.files import read_json

CONFIG = "config.json"
#: What the Hub keeps in every repository for itself.
ITS_OWN = {".gitattributes"}

#: The names of the files that belong to a folder, from what its config.json says; None if it is none of ours.
FilesOf = Callable[[Any], "list[str] | None"]


def pull(name: str, revision: str | None, files_of: FilesOf) -> Path:
    """The folder of a model on the Hub, in the Hub's cache. An interrupted call goes on where it stopped.

    Args:
        name: "owner/name".
        revision: a branch, tag or commit; the default branch without it.
        files_of: which files belong to the folder; nothing else of the repository is downloaded.

    Raises:
        InputError: no such model or revision for who asks, no connection, or one that broke; something else.
    """
    from huggingface_hub import snapshot_download

    failure = f"{name} is neither a folder here nor a model that the Hub gives"
    with _one_line(failure, "run it again, what is whole is kept"):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG]))
        files = files_of(read_json(folder / CONFIG)) if (folder / CONFIG).exists() else None
        if files is None:
            raise InputError(f"{name} is not a model folder: its {CONFIG} is missing or says something else")
        whole = Path(snapshot_download(name, revision=revision, allow_patterns=files))
        if whole.name != folder.name:  # of another commit
            raise InputError(f"{name} changed while it was downloaded: run it again")
        return whole


def push(folder: Path, name: str, private: bool, files_of: FilesOf) -> str:
    """Publish a folder as model "owner/name"; returns its address.

    All files go into one commit, which also removes those of a model that was there before. So whatever happens on the
    way, others see the old model or the new one. (`HfApi.upload_folder` may cut an upload into several commits.)

    Args:
        folder: with a config.json.
        name: "owner/name"; the repository is made if there is none.
        private: whether only its owner may see it.
        files_of: which files belong to the folder, and to the one that is there already.

    Raises:
        InputError: no such owner, no permission, no connection; something else of that name, or a public model where a
            private one is asked for.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if name.count("/") != 1:
        raise InputError(f"{name!r} is no name on the Hub: give owner/name")
    files = [file for file in files_of(read_json(folder / CONFIG)) or [] if (folder / file).exists()]
    api = HfApi()
    with _one_line(f"{name} could not be published", "what is there is whole, run it again"):
        api.create_repo(name, private=private or None, exist_ok=True)
        info = api.model_info(name)
        if private and not info.private:
            raise InputError(f"{name} is there already and public: make it private on its page, or choose another name")
        there = {file.rfilename for file in info.siblings or []} - ITS_OWN
        old: list[str] | None = []
        if CONFIG in there:
            old = files_of(read_json(api.hf_hub_download(name, CONFIG, revision=info.sha)))
        elif there - {"README.md"}:
            old = None
        if old is None:
            raise InputError(f"{name} is there already and is no model of ctf: choose another name")
        api.create_commit(
            name,
            [
                *(CommitOperationAdd(file, str(folder / file)) for file in files),
                *(CommitOperationDelete(file) for file in sorted(there.intersection(old).difference(files))),
            ],
            commit_message="Upload a ctf model",
            parent_commit=info.sha,  # refused if another push came between
        )
    return f"{api.endpoint}/{name}"


@contextmanager
def _one_line(failure: str, remedy: str) -> Iterator[None]:
    """Turn what the Hub's client raises into an InputError: `failure`, why, and `remedy` if the connection broke."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the client lets through what HTTP, its threads and the disk raise
        raise InputError(f"{failure} ({_reason(error, remedy)})") from None


def _reason(error: Exception, remedy: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "it is gated: ask for access on its page, and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such model, or only for others: check the name; `hf auth login` for a private one"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        said = first_line(error.server_message or error.response.reason_phrase or error)
        hint = ": log in with `hf auth login` as one who may" if status in (401, 403) else ""
        return f"the Hub says {status}, {said}{hint}"
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and it is not in the cache"
    if isinstance(error, errors.LocalEntryNotFoundError):
        here = "only a part of it is in the cache, and " if "incomplete" in str(error) else ""
        return f"{here}the Hub cannot be reached: {first_line(_root(error))}"
    if isinstance(error, errors.HFValidationError):
        return "that is no name on the Hub: owner/name, of letters, digits, '-', '_' and '.'"
    if isinstance(error, ValueError):  # of what was asked, such as a licence that is none
        return " ".join(str(error).split())[:300]
    root = _root(error)
    where = "" if root is error else f"{first_line(error)} "
    return f"{where}{first_line(root)}: {remedy}"


def _root(error: BaseException) -> BaseException:
    """The exception that began a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
