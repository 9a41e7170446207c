"""Weights on the Hugging Face hub: hf:OWNER/NAME, or hf:OWNER/NAME@REVISION.

What a repository has of a model is brought into huggingface_hub's cache, whose
folder is then read as any other. huggingface_hub is an optional package.
"""

from collections.abc import Iterator
import contextlib
import functools
import importlib
import os
import re
from typing import Any

from vitkd_jax import remote
from vitkd_jax.models import variants
from vitkd_jax.weights import card, shards

PREFIX = "hf:"
# Files of weights in a repository, in order of preference.
_WEIGHTS = (
  "model.safetensors",
  "student.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)
_BESIDE = ("config.json", "preprocessor_config.json")
_MODULES = "huggingface_hub", "huggingface_hub.errors"
_REPOSITORY = r"[\w.-]+/[\w.-]+"


def local(path: str | os.PathLike) -> str:
  """A path of weights as this machine has it: downloaded, and without "~".

  Args:
    path: as for `loading.load`.

  Returns:
    The path; of a repository, the folder of its files in the cache.

  Raises:
    ValueError: the repository cannot be read, and is not in the cache; the
      message says what to do.
  """
  path = os.path.expanduser(path)
  if not path.startswith(PREFIX):
    return path
  found = re.fullmatch(
    rf"({_REPOSITORY})(?:@([\w./-]+))?", path.removeprefix(PREFIX)
  )
  if not found:
    raise ValueError(
      f"expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, got {path!r}"
    )
  return _download(*found.groups())


# A process uses one revision, also if the repository changes while it runs.
@functools.cache
def _download(repository: str, revision: str | None) -> str:
  """The folder of a repository's files in the cache."""
  named = f"{PREFIX}{repository}" + (f"@{revision}" if revision else "")
  there = f"https://huggingface.co/{repository}/tree/{revision or 'main'}"
  by_hand = (
    f"download {_WEIGHTS[0]} and {_BESIDE[0]} of {there} into a folder and "
    "give its path"
  )
  library, errors = _library(f"{named} needs", f", or {by_hand}")

  def get(file: str, revision: str | None, **options: Any) -> str | None:
    """The path of a file in the cache; None if there is no such file."""
    try:
      return library.hf_hub_download(
        repository, file, revision=revision, **options
      )
    except errors.LocalEntryNotFoundError:
      raise
    except errors.EntryNotFoundError:
      return None

  with _refusing(named, errors, by_hand):
    weights = _first(get, revision, errors)
    if weights is None:
      raise ValueError(
        f"expected one of {', '.join(_WEIGHTS)} in {named}, got none of them"
      )
    folder = os.path.dirname(weights)
    commit = os.path.basename(folder)
    if shards.is_index(weights):
      for file in sorted(set(shards.files_of(weights).values())):
        get(os.path.basename(file), commit)
    for file in _BESIDE:
      # Without a network, a file that the cache lacks counts as missing.
      with contextlib.suppress(errors.LocalEntryNotFoundError):
        get(file, commit)
  return folder


def _first(get: Any, revision: str | None, errors: Any) -> str | None:
  """The first file of weights, from the cache alone if the hub is away."""
  options: dict[str, Any] = {}
  away = None
  for file in _WEIGHTS:
    try:
      found = get(file, revision, **options)
    except errors.LocalEntryNotFoundError as error:
      away = away or error
      options["local_files_only"] = True
      continue
    if found is not None:
      return found
  if away is not None:
    raise away
  return None


def published(path: str) -> str:
  """Where weights of a file's name are to be had, as the end of a sentence.

  Args:
    path: of a missing file or folder.
  """
  name = os.path.basename(path).removesuffix(".safetensors")
  untagged, _, tag = name.partition(".")
  known = variants.NAMED.get(untagged)
  if known is None or tag not in known.published:
    return ""
  return (
    f"; they are published: give {PREFIX}timm/{name} to download them, or put "
    f"{_WEIGHTS[0]} of https://huggingface.co/timm/{name} there"
  )


def push(folder: str, repository: str) -> str:
  """Uploads a folder to a repository, which is made private if it is new.

  Args:
    folder: a local one.
    repository: OWNER/NAME.

  Returns:
    The address of the commit.

  Raises:
    ValueError: the hub refuses it, or cannot be reached.
  """
  library, errors = _library("--push needs", "")
  with _refusing(repository, errors, ""):
    api = library.HfApi()
    api.create_repo(repository, private=True, exist_ok=True)
    done = api.upload_folder(
      repo_id=repository,
      folder_path=folder,
      commit_message="Upload a model converted by vitkd_jax",
    )
  return str(done.commit_url)


def check_push(repository: str, folder: str, format: str) -> None:
  """Refuses what cannot be pushed, before anything is converted.

  Args:
    repository: OWNER/NAME.
    folder: that is to be uploaded.
    format: that it is to be written in.

  Raises:
    ValueError: another form of name or folder, or huggingface_hub is missing.
  """
  if not re.fullmatch(_REPOSITORY, repository):
    raise ValueError(f"expected --push=OWNER/NAME, got {repository!r}")
  if format not in card.FOLDERS or folder.endswith(".safetensors"):
    raise ValueError(
      f"--push uploads a folder: expected --to {', '.join(card.FOLDERS)} and a "
      f"folder as --output, got --to {format} and {folder!r}"
    )
  if remote.is_remote(folder):
    raise ValueError(
      f"expected --output to be a local folder for --push, got {folder!r}"
    )
  _library("--push needs", "")


def _library(who: str, otherwise: str) -> tuple[Any, Any]:
  """huggingface_hub and its exceptions."""
  try:
    library, errors = map(importlib.import_module, _MODULES)
    return library, errors
  except ModuleNotFoundError as error:
    raise ValueError(
      f"{who} {error.name}: pip install 'vitkd-jax[hub]'{otherwise}"
    ) from None


@contextlib.contextmanager
def _refusing(who: str, errors: Any, by_hand: str) -> Iterator[None]:
  """Context whose errors are ValueErrors of one sentence.

  Args:
    who: the repository, for messages.
    errors: module of huggingface_hub.
    by_hand: what to do without a network.
  """
  login = "log in with `hf auth login` if it is private or gated"
  try:
    yield
  except errors.LocalEntryNotFoundError:
    raise ValueError(
      f"cannot reach the hub for {who}, and it is not in the cache; {by_hand}"
    ) from None
  except errors.RevisionNotFoundError:
    raise ValueError(f"{who}: the hub has no such revision") from None
  except errors.RepositoryNotFoundError:  # a gated one, too
    raise ValueError(f"the hub does not show {who}; {login}") from None
  except errors.LocalTokenNotFoundError:
    raise ValueError(f"cannot write {who}; {login}") from None
  except Exception as error:  # of the client that it uses, httpx or requests
    if isinstance(error, ValueError) or getattr(error, "errno", None):
      raise  # a full disk
    first = str(error).strip().partition("\n")[0]
    raise ValueError(
      f"cannot use {who}: {type(error).__name__}: {first}"
    ) from None
