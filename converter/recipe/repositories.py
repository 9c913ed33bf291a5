"""Teams' recipe repositories: git, pinned to a commit, never checked out.

A repository has the folders of `recipes/` (recipe/, quant/, …) at its top. It is fetched into a
bare store, and its files are read out of git's objects: no hook, filter, link or submodule of it
ever takes effect. `converter.recipe.trust` then decides whether their content may be used.

The lock file convert.repos.json names each repository's url, revision and commit. The nearest one
in the working folder or above it wins, name by name, over the user's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from converter.errors import ConvertError, Problem, raise_if
from converter.recipe.trust import MAX_FILE_BYTES, MAX_FILES, name_problems
from converter.storage.cache import cache_folder
from converter.storage.staging import replacing

LOCK_FILE = "convert.repos.json"
RESERVED = ("local",)
"""Names that stand for something else in front of a recipe's name."""
GIT_SECONDS = 300
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REV = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
_HTTPS = re.compile(r"https://[A-Za-z0-9][^\s\x00-\x1f]*")
_SSH = re.compile(r"ssh://(?:[A-Za-z0-9][\w.+-]*@)?[A-Za-z0-9][\w.-]*(?::\d+)?/[^\s\x00-\x1f]*")
_SCP = re.compile(r"[A-Za-z0-9][\w.+-]*@[A-Za-z0-9][\w.-]*:[A-Za-z0-9/~][^\s\x00-\x1f:]*")
_FILE = re.compile(r"file:///[^\x00-\x1f]*|/[^\x00-\x1f]*")
_REGULAR = ("100644", "100755")
_SAFE_SETTINGS = (
    "protocol.allow=never",
    "protocol.https.allow=always",
    "protocol.ssh.allow=always",
    "protocol.file.allow=always",
    f"core.hooksPath={os.devnull}",
    "core.fsmonitor=false",
    "fetch.fsckObjects=true",
    "submodule.recurse=false",
    "gc.auto=0",
)


@dataclass(frozen=True)
class Repository:
    """A repository of recipes at one commit."""

    name: str
    url: str
    rev: str | None
    """Branch or tag that `update` follows; None means the default branch."""
    commit: str


def project_lock(start: Path | None = None) -> Path | None:
    """The nearest lock file in `start` (the working folder) or above it."""
    place = (start or Path.cwd()).resolve()
    for folder in (place, *place.parents):
        if (folder / LOCK_FILE).is_file():
            return folder / LOCK_FILE
    return None


def user_lock() -> Path:
    """The user's own lock file."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(os.path.expanduser(base)) / "convert" / LOCK_FILE


def repositories() -> dict[str, Repository]:
    """All repositories by name; the project's lock file beats the user's.

    Raises:
        ConvertError: a lock file is damaged or names a url that is refused.
    """
    project = project_lock()
    found = read_pins(user_lock())
    return {**found, **(read_pins(project) if project else {})}


def read_pins(path: Path) -> dict[str, Repository]:
    """The repositories that a lock file names; none when it does not exist."""
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["repositories"]
        found = [Repository(name, **entry) for name, entry in entries.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConvertError(
            Problem(
                f"{path} is damaged: {error!r}.",
                "a lock file as `convert repo add` writes",
                "restore it, or delete it and add the repositories again",
            )
        ) from error
    raise_if(problem for item in found for problem in _entry_problems(item, str(path)))
    return {item.name: item for item in found}


def write_pins(path: Path, entries: Mapping[str, Repository]) -> None:
    """Replace a lock file; sorted, so that it reads well in a diff."""
    values = {
        name: {key: value for key, value in asdict(entries[name]).items() if key != "name"}
        for name in sorted(entries)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"repositories": values}, indent=2) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fetch(name: str, url: str, rev: str | None = None, commit: str | None = None) -> Repository:
    """Fetch a revision (or exactly `commit`) into the store and pin it.

    Raises:
        ConvertError: the name, url or revision is refused, or git cannot fetch it.
    """
    raise_if([*_new_problems(name, url, rev)])
    store = _store(url)
    if not (store / "HEAD").is_file():
        store.mkdir(parents=True, exist_ok=True)
        _git(["init", "--quiet", "--bare", "--template=", str(store)])
    wanted = commit or rev or "HEAD"
    with contextlib.suppress(ConvertError):
        _fetch(store, url, ["--depth=1"], [wanted])
        return _pin(store, Repository(name, url, rev, _commit_of(store, "FETCH_HEAD")))
    if commit is None:  # a full name of a branch or tag that a shallow fetch could not have
        _fetch(store, url, [], [wanted])
        return _pin(store, Repository(name, url, rev, _commit_of(store, "FETCH_HEAD")))
    _fetch(store, url, [], ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"])
    return _pin(store, Repository(name, url, rev, _commit_of(store, commit)))


def read_files(repository: Repository, slots: Sequence[str]) -> dict[str, bytes]:
    """The YAML files in the slots' folders at the pinned commit: `quant/x.yaml` to content.

    Reads git's objects in the store, and fetches the commit first only if it is not there.

    Raises:
        ConvertError: the tree holds links, submodules, or too many or too large files.
    """
    if not _has_commit(repository):
        fetch(repository.name, repository.url, repository.rev, repository.commit)
    store = _store(repository.url)
    listing = _git(["ls-tree", "-r", "-l", "-z", repository.commit], store).stdout
    rows = [row for row in listing.split(b"\0") if row]
    raise_if(_tree_problems(repository, rows))
    wanted = {}
    for row in rows:
        meta, _, path = row.partition(b"\t")
        folder, _, _ = path.decode(errors="replace").partition("/")
        if folder in slots:
            wanted[path.decode("utf-8", "replace")] = meta.split()
    raise_if(_file_problems(repository, wanted))
    return _contents(store, {path: fields[2].decode() for path, fields in wanted.items()})


def url_problems(url: str) -> Iterator[Problem]:
    """Why git is not given this url."""
    if "::" in url or not any(form.fullmatch(url) for form in (_HTTPS, _SSH, _SCP, _FILE)):
        yield Problem(
            f"The url {url!r} is refused.",
            "https://HOST/PATH, ssh://USER@HOST/PATH, USER@HOST:PATH or an absolute path",
            "convert repo add NAME https://HOST/PATH",
        )


def _new_problems(name: str, url: str, rev: str | None) -> Iterator[Problem]:
    yield from name_problems("The repository", name)
    if name in RESERVED:
        yield Problem(
            f"The name {name!r} is taken.", "a name that nothing else has", "choose another NAME"
        )
    yield from url_problems(url)
    if rev is not None and (not _REV.fullmatch(rev) or ".." in rev):
        yield Problem(
            f"The revision {rev!r} is refused.",
            "a branch, tag or commit",
            "write --rev v1, or leave --rev out",
        )


def _entry_problems(item: Repository, label: str) -> Iterator[Problem]:
    texts = (item.url, item.commit, item.rev or "")
    if not all(isinstance(text, str) for text in texts) or not _COMMIT.fullmatch(item.commit):
        yield Problem(
            f"The repository {item.name} has the commit {item.commit!r}.",
            "40 hexadecimal digits",
            f"convert repo update {item.name}",
            where=label,
        )
        return
    for problem in _new_problems(item.name, item.url, item.rev):
        yield problem.at(label)


def _tree_problems(repository: Repository, rows: Sequence[bytes]) -> Iterator[Problem]:
    label = f"The repository {repository.name}"
    if len(rows) > MAX_FILES:
        yield Problem(
            f"{label} has {len(rows)} files.", f"at most {MAX_FILES}", "split the repository"
        )
    for row in rows:
        meta, _, path = row.partition(b"\t")
        mode = meta.split()[0].decode()
        if mode not in _REGULAR:
            kind = {"120000": "link", "160000": "submodule"}.get(mode, f"entry of mode {mode}")
            yield Problem(
                f"{label} has the {kind} {path.decode(errors='replace')!r}.",
                "plain files only",
                "remove it from the repository",
            )


def _file_problems(repository: Repository, files: Mapping[str, list[bytes]]) -> Iterator[Problem]:
    for path, fields in files.items():
        label = f"{repository.name}: {path!r}"
        parts = path.split("/")
        if len(parts) != 2 or not parts[1].endswith(".yaml"):
            yield Problem(
                f"{label} is no recipe file.",
                "SLOT/NAME.yaml and nothing else there",
                "move it out of the slots' folders",
            )
            continue
        yield from name_problems(label, parts[1].removesuffix(".yaml"))
        if int(fields[3]) > MAX_FILE_BYTES:
            yield Problem(
                f"{label} has {int(fields[3])} bytes.",
                f"at most {MAX_FILE_BYTES}",
                "remove what is no recipe from the file",
            )


def _contents(store: Path, objects: Mapping[str, str]) -> dict[str, bytes]:
    asked = "".join(f"{name}\n" for name in objects.values()).encode()
    answer, found, place = _git(["cat-file", "--batch"], store, asked).stdout, {}, 0
    for path in objects:
        end = answer.index(b"\n", place)
        size = int(answer[place:end].split()[2])
        found[path] = answer[end + 1 : end + 1 + size]
        place = end + size + 2
    return found


def _fetch(store: Path, url: str, options: Sequence[str], refs: Sequence[str]) -> None:
    quiet = ["--quiet", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance"]
    _git(["fetch", *quiet, *options, "--", url, *refs], store)


def _pin(store: Path, repository: Repository) -> Repository:
    """Keep the commit's objects in the store whatever is fetched later."""
    _git(["update-ref", f"refs/convert/{repository.commit}", repository.commit], store)
    return repository


def _commit_of(store: Path, name: str) -> str:
    spec = f"{name}^{{commit}}"
    return _git(["rev-parse", "--verify", "--quiet", spec], store).stdout.decode().strip()


def _has_commit(repository: Repository) -> bool:
    with contextlib.suppress(ConvertError):
        return _commit_of(_store(repository.url), repository.commit) == repository.commit
    return False


def _store(url: str) -> Path:
    return cache_folder() / "repositories" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.git"


def _git(
    words: Sequence[str], store: Path | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run git with everything off that a repository could make it do."""
    settings = [word for setting in _SAFE_SETTINGS for word in ("-c", setting)]
    place = [f"--git-dir={store}"] if store else []
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    kept |= {"GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
    command = ["git", *settings, *place, *words]
    try:
        return subprocess.run(
            command, input=stdin, env=kept, capture_output=True, check=True, timeout=GIT_SECONDS
        )
    except FileNotFoundError:
        raise ConvertError(
            Problem("Git is not installed.", "git, which fetches repositories", "install git")
        ) from None
    except subprocess.TimeoutExpired:
        raise ConvertError(
            Problem(
                f"git {words[0]} took over {GIT_SECONDS} s.",
                "an answer",
                "run the command again later",
            )
        ) from None
    except subprocess.CalledProcessError as error:
        raise ConvertError(_git_problem(words, error)) from error


def _git_problem(words: Sequence[str], error: subprocess.CalledProcessError) -> Problem:
    return Problem(
        f"git {words[0]} failed: {_reason(error.stderr.decode(errors='replace'))}.",
        "a repository and revision that can be read",
        "check url, --rev and your rights; recipes fetched once are read offline",
    )


def _reason(said: str) -> str:
    """Why git failed: its last lines are advice, the reason stands before them."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reasons = [
        line for line in lines if line.startswith(("fatal:", "error:")) or "denied" in line.lower()
    ]
    chosen = dict.fromkeys(reasons or lines[-3:] or ["no message"])
    return "; ".join(line.rstrip(".") for line in chosen)
