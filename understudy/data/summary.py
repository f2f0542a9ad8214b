"""What an ingest saw, accepted, removed and refused, as JSON and as one small self-contained page."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from understudy.data.files import write_atomically
from understudy.data.rows import MESSAGE_FIELDS, PART_FIELDS
from understudy.errors import IntegrityError
from understudy.pages import load_template

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_MAX_IGNORED_FIELDS = 50
_TEMPLATE = Path(__file__).parent / "templates" / "summary.html"
_BATCH_ROWS = 4096


@dataclass
class Summary:
    """Counts and statistics of one ingest; memory is bounded by the length limits, not by the rows.

    `words` counts runs of characters between white space, an estimate that needs no tokenizer: English text has
    about 1.3 tokens a word, code and YAML more. `scripts` counts rows in which a script occurs, by the first word
    of the Unicode names of their letters; a row may count for several. Lengths are in characters, the prompt's
    over the last user turn. `nfc` says whether all text is in Unicode's composed form.
    """

    source: str
    source_files: list[str]
    ignored_files: list[str]
    unicode_form: str
    rows_in: int = 0
    bad: int = 0
    bad_by_reason: dict[str, int] = field(default_factory=dict)
    duplicates_exact: int = 0
    duplicates_near: int = 0
    near_duplicate_threshold: float | None = None
    rows: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "response": 0})
    length_quantiles: dict[str, dict[str, int]] = field(default_factory=dict)
    scripts: dict[str, int] = field(default_factory=dict)
    nfc: bool = True
    rows_not_nfc: int = 0
    ignored_fields: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        return dataclasses.asdict(self)


class TextStatistics:
    """Accumulates lengths, words, scripts and composition over accepted rows."""

    def __init__(self) -> None:
        self._prompts: list[str] = []
        self._responses: list[str] = []
        self._lengths: dict[str, Counter[int]] = {"prompt": Counter(), "response": Counter()}
        self._words = {"prompt": 0, "response": 0}
        self._scripts: Counter[str] = Counter()
        self._rows_ascii = 0
        self._rows_not_nfc = 0

    def add(self, prompt: str, response: str) -> None:
        """Count one row."""
        self._prompts.append(prompt)
        self._responses.append(response)
        if len(self._prompts) == _BATCH_ROWS:
            self._count()

    def _count(self) -> None:
        """Count the rows at hand, all at once: a few passes over long texts instead of many over short ones."""
        for name, texts in (("prompt", self._prompts), ("response", self._responses)):
            self._lengths[name].update(map(len, texts))
            self._words[name] += _num_words(texts)
        for prompt, response in zip(self._prompts, self._responses, strict=True):
            if prompt.isascii() and response.isascii():
                self._rows_ascii += 1
                continue
            text = f"{prompt}\n{response}"
            self._scripts.update({script for char in set(text) if (script := _script(char))})
            self._rows_not_nfc += not unicodedata.is_normalized("NFC", text)
        self._prompts, self._responses = [], []

    def fill(self, summary: Summary) -> None:
        """Write the statistics into `summary`."""
        self._count()
        # Rows of ASCII alone are counted as Latin without looking at each character.
        scripts = self._scripts + Counter({"Latin": self._rows_ascii})
        summary.scripts = dict(sorted(scripts.items(), key=lambda item: (-item[1], item[0])))
        summary.words = dict(self._words)
        summary.rows_not_nfc = self._rows_not_nfc
        summary.nfc = self._rows_not_nfc == 0
        summary.length_quantiles = {name: _quantiles(counts) for name, counts in self._lengths.items()}


def count_ignored(counts: dict[str, int], more: Mapping[str, int]) -> None:
    """Count fields that no schema names; at most 50 different names, so that memory stays bounded."""
    for name, count in more.items():
        shown = name[:80]
        if shown in counts or len(counts) < _MAX_IGNORED_FIELDS:
            counts[shown] = counts.get(shown, 0) + count


def ignored_in_messages(messages: Any) -> set[str]:
    """Names of what stands in messages beside role and content, or in their parts beside type and text.

    As `messages[].name` and `messages[].content[].name`; a null counts as absent.
    """
    if not isinstance(messages, list):
        return set()
    dicts = [message for message in messages if isinstance(message, dict)]
    parts = [part for message in dicts if isinstance(message.get("content"), list) for part in message["content"]]
    return _others(dicts, MESSAGE_FIELDS, "messages[].") | _others(parts, PART_FIELDS, "messages[].content[].")


def _others(items: list[Any], known: frozenset[str], prefix: str) -> set[str]:
    return {
        f"{prefix}{name}"
        for item in items
        if isinstance(item, dict) and not item.keys() <= known
        for name, value in item.items()
        if value is not None and name not in known
    }


def write_summary(summary: Summary, md5: str, workdir: Path) -> None:
    """Write what the ingest of version `md5` found as a page and, last, as JSON for `read_summary`."""
    data = {"md5": md5, **summary.to_json()}
    folder = workdir / "ingest"
    write_atomically(folder / "summary.html", render_html(data).encode())
    write_atomically(folder / "summary.json", json.dumps(data, indent=1, ensure_ascii=False).encode() + b"\n")


def read_summary(md5: str, workdir: Path) -> dict[str, Any]:
    """Return what the ingest of version `md5` found; only a warning where the summary at hand is another's.

    Raises:
        IntegrityError: the file is not a summary.
    """
    path = workdir / "ingest" / "summary.json"
    again = f"Ingest the source of version {md5} again to have its own."
    if not path.is_file():
        return {"warnings": [f"There is no {path}. {again}"]}
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        found = data["md5"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is not the summary of an ingest: {error!r}. {again}") from error
    return data if found == md5 else {"warnings": [f"{path} is of version {found}, not of this one. {again}"]}


def render_html(summary: Mapping[str, Any]) -> str:
    """Return the summary as one HTML page without outside references."""
    page: str = load_template(_TEMPLATE).render(summary=summary)
    return page


def _num_words(texts: list[str]) -> int:
    """Return the runs of characters between white space in all texts."""
    joined = "\n".join(texts)
    if not joined.isascii():
        return sum(len(text.split()) for text in texts)
    # Valid texts hold no control characters but white space, so everything up to the space is white space.
    blank = np.frombuffer(joined.encode("ascii"), dtype=np.uint8) <= 32
    return int(np.count_nonzero(blank[:-1] & ~blank[1:])) + (not blank[0]) if len(blank) else 0


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    """Return nearest-rank quantiles of a histogram."""
    total = counts.total()
    if total == 0:
        return {}
    wanted = {f"{quantile:g}": int(quantile * (total - 1) + 0.5) for quantile in QUANTILES}
    found: dict[str, int] = {}
    below = 0
    lengths = sorted(counts)
    for length in lengths:
        below += counts[length]
        for name, rank in wanted.items():
            if name not in found and rank < below:
                found[name] = length
    return found


@lru_cache(maxsize=65536)
def _script(char: str) -> str | None:
    if not char.isalpha():
        return None
    name = unicodedata.name(char, "")
    return name.split(" ", 1)[0].split("-", 1)[0].title().replace("Cjk", "CJK") if name else None
