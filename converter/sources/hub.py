"""A checkpoint in a repository on the hub, fetched into Hugging Face's own cache.

Only the files that a conversion reads are fetched, each by its name: configs, tokenizer and
weights, never code. A branch or tag is resolved to its commit, which the lock file records. The
library `huggingface_hub` does the transport: it resumes a broken transfer, honours HF_ENDPOINT
(mirrors), HF_TOKEN and HF_HUB_OFFLINE, and keeps files by content in its cache. What it leaves to
its callers is done here: the sha256 of every weight file is compared with what the hub states.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from converter.errors import ConvertError, Problem, first_line, raise_if
from converter.model.architecture import read_architecture
from converter.model.checkpoint import Checkpoint, read_json
from converter.model.decoder import published_shapes
from converter.model.description import Description
from converter.progress import Advance, format_bytes
from converter.sources.local import SAFETENSORS, WeightForm, open_local, read_index, weight_form
from converter.weights.safetensors_file import DTYPES, open_safetensors, unknown_dtype
from converter.weights.weight import ComputedWeight, Weight

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Configs and tokenizer files that are fetched when the repository has them."""
LIST_SECONDS = 30.0
"""How long the hub may take to list a repository."""


class HubUnreachableError(ConvertError):
    """The hub does not answer and the cache does not hold what is needed."""


@dataclass(frozen=True)
class RemoteFile:
    """What the hub says of a file; None where it says nothing, or cannot be asked."""

    name: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class HubRepository:
    """A repository at one commit."""

    repo: str
    commit: str
    """40 hexadecimal digits."""
    folder: Path
    """Where the cache keeps the files of this commit."""
    files: Mapping[str, RemoteFile]

    def cached(self, name: str) -> bool:
        return (self.folder / name).is_file()

    @property
    def origin(self) -> dict[str, Any]:
        return {"kind": "hub", "repo": self.repo, "commit": self.commit}


def open_hub(repo: str, revision: str | None, advance: Advance) -> Checkpoint:
    """Fetch a repository's configs, tokenizer and weights, and open them.

    Args:
        repo: such as internlm/internlm2-7b.
        revision: branch, tag or commit; None means main.
        advance: told bytes done, bytes in all, and the file at work.

    Raises:
        HubUnreachableError: no network, and the cache lacks something.
        ConvertError: no such repository or revision, no access, no weights, a full disk, or a file
            whose content is not what the hub says.
    """
    found = find_repository(repo, revision)
    form = _fetch_small_files(found)
    shards = [found.files.get(name, RemoteFile(name)) for name in _shard_names(found, form)]
    raise_if(_space_problems(found, shards))
    _fetch_shards(found, shards, advance)
    checkpoint = open_local(found.folder, found.origin)
    wanted = {*SMALL_FILES, *(shard.name for shard in shards)}
    files = tuple(path for path in checkpoint.files if path.name in wanted)
    return replace(checkpoint, files=files)


def preview_hub(repo: str, revision: str | None, description: Description) -> Checkpoint:
    """What `open_hub` will give, without the weights: only headers and small files are fetched.

    Raises:
        ConvertError: as `open_hub`; reading a weight that is not here.
    """
    found = find_repository(repo, revision)
    form = _fetch_small_files(found)
    names = _shard_names(found, form)
    if all(found.cached(name) for name in names):
        return open_local(found.folder, found.origin)
    raise_if(_space_problems(found, [found.files[name] for name in names if name in found.files]))
    config = read_json(found.folder / "config.json")
    if form is SAFETENSORS:
        return Checkpoint(config, _remote_tensors(found, names), found.origin, found.folder)
    tensors = _expected_tensors(found, form, config, description)
    note = "The shapes are what config.json implies: .bin files tell theirs once they are here."
    return Checkpoint(config, tensors, found.origin, found.folder, notes=(note,))


def fetch_config(repo: str, revision: str | None) -> Path:
    """config.json of a repository, fetched.

    Raises:
        ConvertError: as `open_hub`.
    """
    found = find_repository(repo, revision)
    return Path(_download(found.repo, "config.json", found.commit))


def find_repository(repo: str, revision: str | None) -> HubRepository:
    """Resolve a revision to its commit, and list the files there.

    Without a network, the commit is the one that the cache knows for the revision, and the files
    are those that it holds.

    Raises:
        ConvertError: see `open_hub`.
    """
    try:
        info = _ask(repo, revision)
    except HubUnreachableError as error:
        config = _cached_config(repo, revision, error)
        files = {path.name: RemoteFile(path.name) for path in config.parent.iterdir()}
        return HubRepository(repo, config.parent.name, config.parent, files)
    # Asked for by its branch, the file makes the cache note which commit the branch was at.
    config = _download(repo, "config.json", revision)
    commit = config.parent.name  # the cache's layout: snapshots/COMMIT/config.json
    if commit != info.sha:  # the branch moved in between
        info = _ask(repo, commit)
    listed = (
        RemoteFile(item.rfilename, item.size, item.lfs.sha256 if item.lfs else None)
        for item in info.siblings or ()
    )
    return HubRepository(repo, commit, config.parent, {file.name: file for file in listed})


def _ask(repo: str, revision: str | None) -> Any:
    """The hub's description of a repository; asked first, since it answers without retries."""
    from huggingface_hub import HfApi

    with _hub_errors(repo, revision):
        return HfApi().model_info(
            repo, revision=revision, files_metadata=True, timeout=LIST_SECONDS
        )


def _cached_config(repo: str, revision: str | None, unreachable: HubUnreachableError) -> Path:
    try:
        return _download(repo, "config.json", revision, local_files_only=True)
    except HubUnreachableError:
        raise unreachable from None


def _download(repo: str, name: str, revision: str | None, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download

    with _hub_errors(repo, revision, name):
        return Path(hf_hub_download(repo, name, revision=revision, **options))


def _fetch_small_files(found: HubRepository) -> WeightForm:
    """Fetch everything but the weights; give the form that these have."""
    form = weight_form(found.files)
    if form is None:
        raise ConvertError(
            Problem(
                f"The repository {found.repo} holds no weights at {found.commit}.",
                "safetensors or pytorch_model .bin files, one or shards with their index",
                "check source.repo and source.revision",
            )
        )
    for name in (*SMALL_FILES, form.index):
        if name in found.files:
            _download(found.repo, name, found.commit)
    return form


def _shard_names(found: HubRepository, form: WeightForm) -> list[str]:
    if form.index not in found.files:
        return [form.single]
    return sorted(set(read_index(found.folder / form.index).values()))


def _fetch_shards(found: HubRepository, shards: Sequence[RemoteFile], advance: Advance) -> None:
    """Fetch and check the weights, one file after the other, so that an interrupt ends it."""
    total = sum(shard.size or 0 for shard in shards)
    done = 0
    for shard in shards:
        bar = _progress_class(advance, done, total, shard.name)
        path = _download(found.repo, shard.name, found.commit, tqdm_class=bar)
        advance(done, total, f"checking {shard.name}")
        raise_if(_content_problems(found, path, shard))
        done += path.stat().st_size
        advance(done, max(done, total), shard.name)


def _progress_class(advance: Advance, done: int, total: int, name: str) -> type:
    """A bar in tqdm's form, as huggingface_hub wants it, that draws nothing and reports."""
    from huggingface_hub.utils import tqdm

    class Reporting(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self.received = options.get("initial") or 0

        def update(self, n: float | None = 1) -> None:
            self.received += int(n or 0)
            advance(done + self.received, max(total, done + self.received), name)

    return Reporting


def _content_problems(found: HubRepository, path: Path, file: RemoteFile) -> Iterator[Problem]:
    """Compare a weight file with what the hub says; one that differs leaves the cache."""
    expected = file.sha256 or _content_name(path)
    size = path.stat().st_size
    wrong = f"has {size:,} bytes" if file.size not in (None, size) else ""
    if not wrong and expected is not None:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        wrong = f"has the sha256 {digest}" if digest != expected else ""
    if wrong:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        yield Problem(
            f"{file.name} of {found.repo} {wrong}: it was changed or damaged on its way.",
            f"{f'{file.size:,} bytes and ' if file.size else ''}the sha256 {expected}, as the hub "
            "states for this commit",
            "run the command again to fetch it anew; if it stays so, do not trust the mirror",
        )


def _content_name(path: Path) -> str | None:
    """The cache names a large file by its sha256 and links to it; None for any other name."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def _space_problems(found: HubRepository, shards: Sequence[RemoteFile]) -> Iterator[Problem]:
    missing = sum(shard.size or 0 for shard in shards if not found.cached(shard.name))
    free = shutil.disk_usage(found.folder).free
    if missing > free:
        needed = f"{format_bytes(missing)} for the weights of {found.repo}"
        yield _full_disk(f"{format_bytes(free)} are free", needed)


def _remote_tensors(found: HubRepository, names: Sequence[str]) -> dict[str, Weight]:
    """Tensors of safetensors files, from headers that are read over the network."""
    from huggingface_hub import HfApi

    tensors: dict[str, Weight] = {}
    for name in names:
        if found.cached(name):
            tensors |= open_safetensors(found.folder / name)
            continue
        with _hub_errors(found.repo, found.commit, name):
            header = HfApi().parse_safetensors_file_metadata(
                found.repo, name, revision=found.commit
            )
        for tensor, entry in header.tensors.items():
            if entry.dtype not in DTYPES:
                label = f"{tensor} in {name} of {found.repo}"
                raise ConvertError(unknown_dtype(label, entry.dtype))
            shape, dtype = tuple(entry.shape), DTYPES[entry.dtype]
            tensors[tensor] = _not_here(f"{tensor} in {name}", shape, dtype)
    return tensors


def _expected_tensors(
    found: HubRepository, form: WeightForm, config: dict[str, Any], description: Description
) -> dict[str, Weight]:
    """Tensors of .bin files: names from the index, shapes from the config."""
    shapes = published_shapes(description.layout, read_architecture(config, description))
    index = found.folder / form.index
    names = read_index(index) if index.is_file() else shapes
    stated = str(config.get("torch_dtype") or config.get("dtype"))
    dtype = {"float32": torch.float32, "float16": torch.float16}.get(stated, torch.bfloat16)
    return {name: _not_here(name, shapes.get(name, ()), dtype) for name in names}


def _not_here(label: str, shape: tuple[int, ...], dtype: torch.dtype) -> Weight:
    def compute(start: int, stop: int) -> torch.Tensor:
        raise ConvertError(
            Problem(
                f"{label} was not fetched.",
                "weights on this machine",
                "run the same words without `plan`: `convert recipe=…` fetches the weights",
            )
        )

    return ComputedWeight(shape, dtype, compute, label)


@contextmanager
def _hub_errors(repo: str, revision: str | None, file: str = "config.json") -> Iterator[None]:
    """Say what failed, where, and what to do, for everything that the hub's library raises."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise ConvertError(_gated(repo)) from None
    except errors.RepositoryNotFoundError:
        raise ConvertError(_no_repository(repo)) from None
    except errors.RevisionNotFoundError:
        raise ConvertError(_no_revision(repo, revision)) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise HubUnreachableError(_unreachable(repo, file, error)) from None
    except errors.EntryNotFoundError:
        raise ConvertError(_no_file(repo, revision, file)) from None
    except errors.HFValidationError as error:
        raise ConvertError(_bad_name(repo, error)) from None
    except errors.HfHubHTTPError as error:
        raise _refused(repo, file, error) from None
    except errors.HTTPError as error:  # no connection, or one that broke and stayed broken
        raise HubUnreachableError(_unreachable(repo, file, error)) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConvertError(_full_disk("the disk is full", f"room for {file}")) from None
        raise HubUnreachableError(_unreachable(repo, file, error)) from None


def _refused(repo: str, file: str, error: Any) -> ConvertError:
    status = error.response.status_code
    if status in (401, 403):
        return ConvertError(_gated(repo))
    return HubUnreachableError(_unreachable(repo, file, error))


def _gated(repo: str) -> Problem:
    return Problem(
        f"The hub does not let you read {repo}: it is gated or private.",
        "an account that accepted its conditions, and its token on this machine",
        f"accept the conditions on the repository's page, then `hf auth login` or set HF_TOKEN; or "
        f"fetch {repo} yourself and give source.path=FOLDER",
    )


def _no_repository(repo: str) -> Problem:
    return Problem(
        f"The hub has no repository {repo}, or it is private.",
        "the name of a repository that you can read, such as internlm/internlm2-7b",
        "correct source.repo; for a private one `hf auth login` or set HF_TOKEN",
    )


def _no_revision(repo: str, revision: str | None) -> Problem:
    return Problem(
        f"{repo} has no revision {revision!r}.",
        "a branch, a tag or a 40-digit commit of that repository",
        "correct source.revision, or leave it out for the main branch",
    )


def _no_file(repo: str, revision: str | None, file: str) -> Problem:
    return Problem(
        f"{repo} has no {file} at {revision or 'main'}.",
        "a checkpoint as transformers saves it",
        "check source.repo and source.revision",
    )


def _bad_name(repo: str, error: Exception) -> Problem:
    return Problem(
        f"source.repo={repo} is not the name of a repository: {first_line(error)}.",
        "OWNER/NAME, such as internlm/internlm2-7b",
        "correct source.repo, or give source.path=FOLDER for a local folder",
    )


def _unreachable(repo: str, file: str, error: Exception) -> Problem:
    return Problem(
        f"{file} of {repo} is not in the cache, and the hub cannot be reached or broke off: "
        f"{first_line(error.__cause__ or error)}.",
        "a connection to the hub (HF_ENDPOINT names a mirror; HF_HUB_OFFLINE=1 forbids all)",
        "connect and run the command again: whole files are kept; or give source.path=FOLDER",
    )


def _full_disk(found: str, needed: str) -> Problem:
    from huggingface_hub import constants

    return Problem(
        f"The hub's cache {constants.HF_HUB_CACHE} has too little room: {found}.",
        needed,
        "free some, or set HF_HOME to a folder on a larger disk",
    )
