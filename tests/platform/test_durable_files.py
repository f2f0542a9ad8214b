"""Files that outlast a loss of power: their bytes are synced before they get their name, their folder after it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from understudy.data.files import write_atomically
from understudy.evaluation.chat_api import ChatApi, ChatReply
from understudy.platform.launch_request import Exchange
from understudy.platform.promotion.places import LocalPlace
from understudy.platform.registrations import write_receipt
from understudy.records import RegistryEntry

ENTRY = RegistryEntry("tiny", "1", "challenger", "models:/tiny/1", {})


def keep_reply(folder: Path) -> None:
    ChatApi("http://chat/v1", None, 1, 1).keep(folder, {}, ChatReply("yes", 1, 1))


def replace(folder: Path) -> None:
    place = LocalPlace(folder)
    (folder / "decisions").mkdir()
    (folder / "decisions" / "a.json").write_bytes(b"old")
    found = place.read("decisions/a.json")
    assert found is not None and place.replace("decisions/a.json", b"new", found.tag)


WRITERS: dict[str, Callable[[Path], object]] = {
    "file": lambda folder: write_atomically(folder / "a" / "b.json", b"{}"),
    "launch": lambda folder: Exchange(f"{folder}/a").write("request.json", {"step": "sft"}),
    "created": lambda folder: LocalPlace(folder).create("decisions/a.json", b"{}"),
    "replaced": replace,
    "receipt": lambda folder: write_receipt(folder, "sqlite:///a.db", ENTRY),
    "reply": keep_reply,
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_bytes_then_names_are_synced(
    writer: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced_bytes: list[int] = []
    synced_folders: list[tuple[Path, list[str]]] = []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            synced_folders.append((path, sorted(item.name for item in path.glob("*.json"))))
        else:
            assert synced_folders == []
            synced_bytes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    writer(tmp_path)
    (written,) = tmp_path.rglob("*.json")
    assert synced_bytes == [written.stat().st_size]
    assert (written.parent, [written.name]) in synced_folders
