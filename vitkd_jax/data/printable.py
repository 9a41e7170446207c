"""Makes text from data safe for a terminal, a table or a picture."""

import re

# Control characters, which a terminal obeys; marks that change the writing
# direction; lone surrogates, which cannot be encoded.
_UNPRINTABLE = re.compile(
  "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
  """The text on one line, without anything that a terminal would obey.

  Args:
    text: from a file or a name.
  """
  return _UNPRINTABLE.sub(
    lambda found: " " if found[0].isspace() else "\ufffd", text
  )
