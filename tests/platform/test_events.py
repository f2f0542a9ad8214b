"""Events: whole lines only, throttled progress, values that JSON cannot hold."""

from __future__ import annotations

from pathlib import Path

from understudy.platform.events import EventLog, EventReader, EventTracker, read_events


def test_reader_skips_an_incomplete_last_line_and_picks_it_up_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).write("sft", "start")
    with path.open("a") as file:
        file.write('{"t": 1, "step": "sft", "kind": "fin')
    reader = EventReader(path)
    assert [event["kind"] for event in reader.read()] == ["start"]
    assert reader.read() == []
    with path.open("a") as file:
        file.write('ish"}\n')
    assert [event["kind"] for event in reader.read()] == ["finish"]


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'\xff\xfe\n[1]\n{"step": "a", "kind": "start"}\n')
    assert [event["step"] for event in read_events(path)] == ["a"]


def test_not_finite_numbers_become_null(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    EventTracker(log, "align").log(3, {"loss": float("nan"), "kl": 0.5})
    (event,) = read_events(log.path)
    assert (event["index"], event["metrics"]) == (3, {"loss": None, "kl": 0.5})


def test_progress_is_throttled_but_the_last_always_comes(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    tracker = EventTracker(log, "sft", interval_seconds=3600)
    for done in range(1, 11):
        tracker.progress(done, 10, "steps", {})
    assert [event["done"] for event in read_events(log.path)] == [1, 10]


def test_an_unwritable_log_does_not_raise(tmp_path: Path) -> None:
    EventLog(tmp_path / "absent" / "events.jsonl").write("sft", "start")
    assert read_events(tmp_path / "absent" / "events.jsonl") == []
