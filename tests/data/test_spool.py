"""Rows and taken ids are what a plain search in all rows finds, in however many buckets, spools and pieces."""

from __future__ import annotations

import random
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from understudy.data import spool as spool_module
from understudy.data.rows import Row
from understudy.data.spool import Spool, Spooled, SpooledRows, content_of, place

NUM_CONTENTS = 40


def digest_of(content: int) -> str:
    row = row_of(content, None, 0)
    return sha256(content_of(row.messages, row.response)).hexdigest()


def row_of(content: int, row_id: str | None, metadata: int) -> Row:
    messages = [{"role": "user", "content": f"p {content}"}]
    response = "r " * (content % 7 * 30 + 1) + str(content)
    return Row(row_id, None, messages, f"p {content}", response, f'{{"n":{metadata}}}')


def drawn(seed: int) -> list[tuple[int, Row]]:
    """Rows with their contents' numbers: few contents and ids, some of them digests, so that much repeats."""
    draw = random.Random(seed)
    contents = [draw.randrange(NUM_CONTENTS) for _ in range(300)]
    names = [None, None, None, *(f"i{index}" for index in range(15)), *map(digest_of, range(0, NUM_CONTENTS, 4))]
    return [(content, row_of(content, draw.choice(names), draw.randrange(5))) for content in contents]


def spooled(rows: list[tuple[int, Row]], count: int, num_spools: int, folder: Path) -> SpooledRows:
    folders = [folder / f"{index}" for index in range(num_spools)]
    (folder / "scratch").mkdir()
    for index, path in enumerate(folders):
        path.mkdir()
        spool = Spool(path, count)
        for position, (_, row) in enumerate(rows):
            if position * num_spools // len(rows) == index:
                spool.add(row, place(1, position))
        spool.close()
    return SpooledRows(folders, count, folder / "scratch")


def taken(rows: list[tuple[int, Row]]) -> list[int]:
    first: dict[str, int] = {}
    named = [(row.id or digest_of(content), content) for content, row in rows]
    return [place(1, at) for at, (name, content) in enumerate(named) if first.setdefault(name, content) != content]


def kept(rows: list[tuple[int, Row]], without: list[int]) -> list[tuple[str, str | None, str]]:
    found: dict[str, list[tuple[bool, str, str]]] = {}
    for at, (content, row) in enumerate(rows):
        if place(1, at) not in without:
            found.setdefault(digest_of(content), []).append((row.id is None, row.id or "", row.metadata_json))
    best = {digest: min(named) for digest, named in found.items()}
    return [(digest, name or None, metadata) for digest, (_, name, metadata) in sorted(best.items())]


def shown(row: Spooled) -> tuple[str, str | None, str]:
    return row.sha256, row.id, row.metadata_json


LARGE = 1 << 30


@pytest.mark.parametrize(
    ("count", "num_spools", "bucket_bytes"),
    [(1, 1, 1), (1, 1, 500), (1, 3, 4000), (1, 2, LARGE), (4, 2, 1), (4, 2, 500), (4, 1, LARGE), (256, 1, 100)],
)
def test_rows_and_taken_ids_are_those_of_a_plain_search(
    count: int, num_spools: int, bucket_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.data.spool._BUCKET_BYTES", bucket_bytes)
    for seed in range(2):
        (folder := tmp_path / f"{seed}").mkdir()
        rows = drawn(seed)
        found = spooled(rows, count, num_spools, folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        places = found.repeated_ids()
        assert places.tolist() == taken(rows) and len(places) > 30
        assert [shown(row) for row in found.unique_rows(places)] == kept(rows, places.tolist())
        assert [shown(row) for row in found.unique_rows()] == kept(rows, [])
        assert len(list(islice(found.unique_rows(), 3))) == 3
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        assert list((folder / "scratch").iterdir()) == []


def test_a_bucket_is_held_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row once and of 1,100 bytes at most, in one bucket; a plain read holds 300 of them."""
    monkeypatch.setattr("understudy.data.spool._BUCKET_BYTES", 10_000)
    sizes: list[int] = []
    in_order = spool_module._Lines.in_order

    def counted(self: spool_module._Lines, batch: list[bytes]) -> list[bytes]:
        sizes.append(sum(map(len, batch)))
        return in_order(self, batch)

    monkeypatch.setattr(spool_module._Lines, "in_order", counted)
    rows = [(content, row_of(content, None, 0)) for content in range(300)]
    found = [shown(row) for row in spooled(rows, 1, 1, tmp_path).unique_rows(np.empty(0, dtype=np.uint64))]
    assert found == kept(rows, []) and len(found) == 300
    assert sum(sizes) > 2 * 100_000 and max(sizes) < 2 * 10_000
