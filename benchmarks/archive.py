"""Real JPEGs that a user has, as an archive."""

import tarfile


def jpegs(path: str) -> list[bytes]:
  """The JPEGs in a tar archive.

  Args:
    path: of the archive.

  Raises:
    ValueError: it is no tar archive, or has no JPEG.
    OSError: it cannot be read.
  """
  try:
    with tarfile.open(path) as archive:
      files = [archive.extractfile(m).read() for m in archive if m.isfile()]
  except tarfile.TarError as error:
    raise ValueError(f"expected a tar archive, got {path} ({error})") from None
  files = [data for data in files if data.startswith(b"\xff\xd8")]
  if not files:
    raise ValueError(f"expected JPEGs in {path}, got none")
  return files
