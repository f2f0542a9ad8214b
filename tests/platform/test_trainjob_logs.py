"""The log of a pod as kubelets give it: carriage returns, lines without a time, lines cut off."""

from __future__ import annotations

from typing import Any

import pytest

from understudy.platform.trainjob.cluster import Cluster
from understudy.platform.trainjob.logs import LogFollower

POD = {
    "metadata": {"name": "p", "uid": "u", "labels": {"batch.kubernetes.io/job-completion-index": "0"}},
    "status": {"containerStatuses": [{"state": {"running": {}}, "restartCount": 0}]},
}


def follow(*answers: str) -> list[str]:
    """Return what is shown when the log is asked for once per answer."""

    class Answer:
        def __init__(self, text: str) -> None:
            self.data = text.encode()

    shown: list[str] = []
    texts = iter(answers)
    cluster = Cluster("n", None)
    cluster._call = lambda *_, **__: Answer(next(texts))  # type: ignore[method-assign]
    follower = LogFollower(cluster, shown.append, lambda: 0.0)
    for _ in answers:
        follower.poll([POD])
    return shown


T1, T2, T3 = (f"2026-11-24T07:00:0{second}.5Z" for second in (1, 2, 3))


def test_a_progress_bar_is_one_line_and_silences_nothing() -> None:
    bar = f"{T1} epoch 1\repoch 2\repoch 3\n"
    assert follow(bar, f"{bar}{T2} round 2\n") == ["epoch 1\repoch 2\repoch 3", "round 2"]


@pytest.mark.parametrize("odd", ["\u2028", "\x0b", "\x0c", "\x1c", "\x85"])
def test_only_a_line_feed_ends_a_line(odd: str) -> None:
    assert follow(f"{T1} a{odd}zebra b\n{T2} c\n") == [f"a{odd}zebra b", "c"]


def test_a_line_without_a_time_is_told_once_and_silences_nothing() -> None:
    rotated = "unable to retrieve container logs for containerd://0abc\n"
    assert follow(f"{T1} a\n{rotated}", f"{rotated}{T2} b\n", f"{T3} c\n") == ["a", rotated.strip(), "b", "c"]


def test_a_line_cut_in_its_time_silences_nothing() -> None:
    assert follow(f"{T1} a\n2026-11-24T07:00:0", f"{T1} a\n{T2} b\n") == ["a", "2026-11-24T07:00:0", "b"]


def test_empty_answers_and_empty_lines() -> None:
    assert follow("", "\n", f"{T1} \n{T2}\n{T3} x\n") == ["", "", "x"]


def test_bytes_that_are_no_text_are_told_replaced() -> None:
    cluster: Any = Cluster("n", None)
    cluster._call = lambda *_, **__: type("Answer", (), {"data": b"\xff\xfe a\n"})
    assert cluster.log("p") == ["\ufffd\ufffd a"]
