"""The extractor on lists written here; no text of Debian's is in this repository."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from examples.debian import extract as module
from examples.debian.similarity import judge

LONG = "This program counts the sheep of a shepherd who would rather sleep, one by one."
LISTS = f"""Package: sheep
Description-md5: 00
Description-en: counter of sheep
 This program counts the sheep of a shepherd
 who would rather sleep, one by one.
 .
 It can count:
  * white sheep
  * black sheep
 .
 Nothing else is counted, for now.

Package: sheep-data
Description-en: counter of sheep (data)
 {LONG}
 .
 This package holds the sheep.

Package: short
Description-en: too short to learn from
 Tiny.

Package: bare
Description-en: no long description

Package: sheep
Description-en: the same name again, in a later list
 {LONG}

Package: wolf
Description-de: Wolf
 Dieser Text gehört nicht zur englischen Beschreibung und bleibt deshalb draußen.
Description-en: eater of sheep
 A wolf that eats what others count; it is stopped by fences and by well-fed dogs.
"""


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "mirror_dists_stable_main_i18n_Translation-en").write_text(LISTS)
    (folder / "mirror_dists_stable_main_i18n_Translation-de").write_text(LISTS.replace("sheep", "Schafe"))
    (folder / "mirror_dists_stable_main_binary-amd64_Packages").write_text(LISTS)
    return folder


def test_a_row_is_the_summary_and_the_unfolded_description() -> None:
    rows = {row["id"]: row for row in module.extract([LISTS])}
    assert list(rows) == ["sheep", "sheep-data", "wolf"]
    assert rows["sheep"]["prompt"] == "sheep: counter of sheep"
    assert rows["sheep"]["response"] == (
        f"{LONG}\nIt can count:\n* white sheep\n* black sheep\nNothing else is counted, for now."
    )
    assert rows["wolf"]["response"].startswith("A wolf that eats") and "Dieser" not in rows["wolf"]["response"]


def test_packages_that_share_their_first_paragraph_are_one_group() -> None:
    rows = {row["id"]: row["group"] for row in module.extract([LISTS])}
    assert rows["sheep"] == rows["sheep-data"] != rows["wolf"]


def test_longest_response_and_limit() -> None:
    assert [row["id"] for row in module.extract([LISTS], max_chars=110)] == ["sheep-data", "wolf"]
    assert len(module.extract([LISTS], limit=2)) == 2


def test_files_written(lists: Path, tmp_path: Path) -> None:
    assert module.main(["--lists", str(lists), "--out", str(tmp_path / "out")]) == 0
    source = json.loads((tmp_path / "out" / "source.json").read_text())
    assert (source["rows"], source["groups"], source["judge"]) == (3, 2, None)
    assert source["files"] == ["mirror_dists_stable_main_i18n_Translation-en"]
    rows = (tmp_path / "out" / "demonstrations.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in rows] == ["sheep", "sheep-data", "wolf"]


def test_without_lists_apt_is_asked_for_english_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.extend(command)
        return subprocess.CompletedProcess(command, 100, "", "W: nothing\nE: The mirror is asleep\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert module.main(["--out", str(tmp_path)]) == 5
    assert f"Dir::State::Lists={tmp_path / 'lists'}" in asked and "Acquire::Languages=en" in asked
    said = capsys.readouterr().err
    assert "ended with 100" in said and "The mirror is asleep" in said
    assert not (tmp_path / "demonstrations.jsonl").exists()


def test_an_empty_folder_of_lists_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--lists", str(tmp_path), "--out", str(tmp_path / "out")]) == 5
    assert "*_i18n_Translation-en" in capsys.readouterr().err


def test_similarity_is_one_for_the_reference_and_low_for_another_text() -> None:
    assert judge("", LONG, LONG) == 1.0
    assert judge("", "zzz qqq", LONG) < 0.1 < judge("", LONG[:40], LONG) < 0.9
