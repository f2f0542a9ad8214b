"""Pages with blocks: only what is between the marks changes, and no page has a block that nobody writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments import blocks

PAGE = (
    "# Title\n<!-- begin one: written by a test -->\nold\n<!-- end -->\nprose\n<!-- begin two-b: x -->\n<!-- end -->\n"
)


def test_only_the_named_blocks_change() -> None:
    made = blocks.filled(PAGE, {"two-b": "| new \\1 |"})
    assert made == PAGE.replace("x -->\n", "x -->\n| new \\1 |\n")
    assert blocks.filled(made, {"two-b": "| new \\1 |"}) == made
    assert blocks.names(PAGE) == ["one", "two-b"]


def test_a_block_that_the_page_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="no block three; it has one, two-b"):
        blocks.filled(PAGE, {"three": "x"})


def test_pages_are_written_only_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "DOCS", tmp_path)
    (tmp_path / "page.md").write_text(PAGE)
    assert blocks.write({"page.md": {"one": "new"}}) == ["page.md"]
    assert "\nnew\n" in (tmp_path / "page.md").read_text()
    assert blocks.write({"page.md": {"one": "new"}}) == []


def test_marks_on_the_pages_are_well_formed() -> None:
    for page in (blocks.DOCS / "results.md", blocks.DOCS / "results-real.md"):
        text = page.read_text(encoding="utf-8")
        begun = re.findall(r"<!-- begin ([\w-]+): written by python -m experiments", text)
        assert begun == blocks.names(text) and len(begun) == len(set(begun)) == text.count("<!-- end -->")
