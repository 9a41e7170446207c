"""Published archives: their names, sizes and contents."""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import os
import tarfile

from vitkd_jax.data.builders import images


@dataclasses.dataclass(frozen=True)
class Archive:
  """A published file.

  Attributes:
    file: file name.
    size: in bytes.
    count: number of images; None for a file without images.
    where: half a sentence on how to get it.
    sha256: of the file; None if it is too large to hash on every start.
  """

  file: str
  size: int
  count: int | None
  where: str
  sha256: str | None = None


def locate(name: str, source: str, archives: Sequence[Archive]) -> list[str]:
  """Finds and checks the archives that a dataset is made from.

  Args:
    name: of the dataset, for the message.
    source: folder of the archives.
    archives: to find.

  Returns:
    Their paths, in the same order.

  Raises:
    ValueError: one is missing or is not the published file.
  """
  paths = [os.path.join(source, a.file) for a in archives]
  missing = [
    archive
    for archive, path in zip(archives, paths, strict=True)
    if not os.path.isfile(path)
  ]
  if missing:
    wanted = " and ".join(f"{a.file} ({a.size:,} bytes)" for a in archives)
    ways = "; ".join(f"no {a.file}: {a.where}" for a in missing)
    raise ValueError(f"{name}: expected {wanted}; {source} has {ways}.")
  for archive, path in zip(archives, paths, strict=True):
    _check_file(archive, path)
  return paths


def _check_file(archive: Archive, path: str) -> None:
  size = os.path.getsize(path)
  if size != archive.size:
    cause = "truncated" if size < archive.size else "another file"
    raise ValueError(
      f"{path}: expected the published {archive.size:,} bytes, got {size:,}"
      f" ({cause}); {archive.where}."
    )
  if archive.sha256:
    with open(path, "rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
      raise ValueError(
        f"{path}: expected the published file with SHA-256"
        f" {archive.sha256[:12]}..., got {digest[:12]}...; {archive.where}."
      )


def check_count(archive: Archive, path: str, count: int) -> None:
  """Checks the number of images in an archive.

  Args:
    archive: as published.
    path: of the file, for the message.
    count: images found.

  Raises:
    ValueError: it is not the published number.
  """
  if count != archive.count:
    raise ValueError(
      f"{path}: expected the published {archive.count:,} images, got"
      f" {count:,}; {archive.where}."
    )


def members(
  path: str,
  within: images.Example | None = None,
  suffixes: tuple[str, ...] = images.SUFFIXES,
) -> Iterator[tuple[images.Example, str | None]]:
  """Lists the files in a tar, or in a tar inside it.

  Args:
    path: of the tar.
    within: member to list instead, itself a tar.
    suffixes: of the file names to list.

  Yields:
    The file, with label -1, and what is wrong with it as an image, or None.

  Raises:
    ValueError: it is not a tar, or damaged.
  """
  start, end = 0, os.path.getsize(path)
  if within is not None:
    start, end = within.offset, within.offset + within.size
  try:
    with open(path, "rb") as file:
      file.seek(start)
      last = -1
      with tarfile.TarFile(fileobj=file) as tar:
        for m in tar:
          _check_place(m, last, end)
          last = m.offset
          base = os.path.basename(m.name)
          if not base.lower().endswith(suffixes) or base.startswith("."):
            continue
          wrong: str | None = "is a link, a folder or sparse"
          if m.isreg() and not m.issparse():
            file.seek(m.offset_data)
            first = file.read(min(images.HEAD, m.size))
            wrong = images.problem(m.name, m.size, first)
          yield images.Example(m.name, path, m.offset_data, m.size, -1), wrong
  except _DAMAGE as error:
    raise ValueError(
      f"{path}: expected an intact tar file, got {error}; if it is compressed"
      " with gzip, decompress it with gunzip and keep the name."
    ) from error


# What tarfile raises for damaged headers.
_DAMAGE = (
  tarfile.TarError,
  ValueError,
  OverflowError,
  EOFError,
  TypeError,
  LookupError,
  AttributeError,
  MemoryError,
)


def _check_place(member: tarfile.TarInfo, last: int, end: int) -> None:
  """Refuses sizes that point beyond the tar, or backwards."""
  stop = member.offset_data + (0 if member.issparse() else member.size)
  if member.size < 0 or member.offset <= last or stop > end:
    raise tarfile.ReadError(
      f"member {ascii(member.name)[:200]} of {member.size:,} bytes outside it"
    )
