"""What mkdocs does differently with these pages than GitHub."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
  """The page without links to files that the site does not have.

  Args:
    markdown: the page, whose links out of docs/ become their texts, with the
      path where that says more.
  """

  def plain(link: re.Match[str]) -> str:
    text, path = link[1], link[2].partition("#")[0]
    return text if path.endswith(text) else f"{text} (`{path}`)"

  return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./([^)]+)\)", plain, markdown)
