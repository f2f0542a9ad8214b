"""Pages whose tables are written from raw numbers, each between its marks; what stands around them is written by hand.

A block begins with `<!-- begin NAME: … -->` on a line of its own and ends with `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r"(<!-- begin ([\w-]+)[^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
Pages = Mapping[str, Mapping[str, str]]  # page → block → its Markdown


def names(text: str) -> list[str]:
    """The blocks of a page."""
    return [match[2] for match in _BLOCK.finditer(text)]


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """The page with these blocks filled anew; others stay as they are.

    Raises:
        ValueError: the page lacks one of the blocks.
    """
    absent = [name for name in blocks if name not in names(text)]
    if absent:
        raise ValueError(f"The page has no block {', '.join(absent)}; it has {', '.join(names(text)) or 'none'}.")
    return _BLOCK.sub(
        lambda match: f"{match[1]}{blocks[match[2]]}\n{match[3]}" if match[2] in blocks else match[0], text
    )


def write(pages: Pages) -> list[str]:
    """Fill the pages of docs/; return the names of those that changed."""
    from examples.writing import write_text

    changed = []
    for name, blocks in pages.items():
        text = (DOCS / name).read_text(encoding="utf-8")
        if (wanted := filled(text, blocks)) != text:
            write_text(DOCS / name, wanted)
            changed.append(name)
    return changed


def write_and_tell(pages: Pages) -> None:
    """Fill the pages of docs/ and print which changed."""
    changed = write(pages)
    print("\n".join(f"docs/{name} is written anew" for name in changed) or "The pages say it already.")
