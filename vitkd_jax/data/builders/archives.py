"""Published archives: what they are called, how large they are, what is in."""

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
    file: its name.
    size: bytes.
    count: images in it; None where a file holds none.
    where: how a user gets it.
    sha256: of the file; None where it is too large to look at each time.
  """

  file: str
  size: int
  count: int | None
  where: str
  sha256: str | None = None


def locate(name: str, source: str, archives: Sequence[Archive]) -> list[str]:
  """Paths of the files that data set `name` is made from.

  Raises:
    ValueError: one is not in folder `source`, or is not the published one.
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
    raise ValueError(f"{name} is made from {wanted}. {source} has {ways}.")
  for archive, path in zip(archives, paths, strict=True):
    _check_file(archive, path)
  return paths


def _check_file(archive, path):
  size = os.path.getsize(path)
  if size != archive.size:
    cause = "its download broke off" if size < archive.size else "not that file"
    raise ValueError(
      f"{path} has {size:,} bytes, but the published one {archive.size:,}:"
      f" {cause}. {archive.where[0].upper()}{archive.where[1:]}."
    )
  if archive.sha256:
    with open(path, "rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
      raise ValueError(
        f"{path} is not the published file: its SHA-256 is {digest[:12]}...,"
        f" not {archive.sha256[:12]}...; {archive.where}."
      )


def check_count(archive: Archive, path: str, count: int) -> None:
  """Raises ValueError where `count` is not that of the published images."""
  if count != archive.count:
    raise ValueError(
      f"{path} holds {count:,} images, but the published one"
      f" {archive.count:,}. {archive.where[0].upper()}{archive.where[1:]}."
    )


def members(
  path: str,
  within: images.Example | None = None,
  suffixes: tuple[str, ...] = images.SUFFIXES,
) -> Iterator[tuple[images.Example, str | None]]:
  """The files with `suffixes` of a tar.

  Args:
    path: of the tar.
    within: member of it that is a tar, whose files are meant.
    suffixes: of their names.

  Yields:
    the file, with label -1, and what is wrong with it as an image.

  Raises:
    ValueError: there is no tar, or a damaged one.
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
          wrong = "is a link, a folder or sparse"
          if m.isreg() and not m.issparse():
            file.seek(m.offset_data)
            first = file.read(min(images.HEAD, m.size))
            wrong = images.problem(m.name, m.size, first)
          yield images.Example(m.name, path, m.offset_data, m.size, -1), wrong
  except _DAMAGE as error:
    raise ValueError(
      f"{path} is no tar file, or a damaged one ({error}); where its name ends"
      " in .gz and it is compressed, unpack it with gunzip and keep the name."
    ) from error


# What tarfile raises at headers that make no sense.
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


def _check_place(member, last, end):
  """Refuses sizes that lead out of the tar, or in a circle."""
  stop = member.offset_data + (0 if member.issparse() else member.size)
  if member.size < 0 or member.offset <= last or stop > end:
    raise tarfile.ReadError(
      f"{ascii(member.name)[:200]} of {member.size:,} bytes does not fit in it"
    )
