"""For `make docs`: files of the repository that are no pages have no address on the site, so their paths are shown."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`[text](../benchmarks/README.md)` becomes "text (`benchmarks/README.md`)"."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)", r"\1 (`\2`)", markdown)
