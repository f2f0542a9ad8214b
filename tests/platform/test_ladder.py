from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from understudy.errors import IntegrityError
from understudy.platform.ladder import Match, enter_report, games_of, ladder_for_report, open_ladder, ratings


def match(a, b, results, identity="", **more):
    return Match(a, b, results, "person", 32.0, identity, **more)


@pytest.fixture
def ladder(tmp_path, monkeypatch):
    monkeypatch.delenv("UNDERSTUDY_STORAGE_URI", raising=False)
    return open_ladder(tmp_path, None)


def test_ratings_are_elo_one_game_at_a_time(ladder):
    assert ladder.add(match("m/1", "m/2", "WT"))
    one, two = ratings(ladder.matches(), ["m/1", "m/2", "m/3"])[::2]
    after = 1500 + 16  # even chances, a win of step 32
    expected = 1 / (1 + 10 ** (-32 / 400))
    assert (one.version, one.wins, one.ties, one.losses) == ("m/1", 1, 1, 0)
    assert one.rating == pytest.approx(after + 32 * (0.5 - expected))
    assert (two.version, two.losses, two.rating + one.rating) == ("m/2", 1, pytest.approx(3000))


def test_many_games_find_the_true_difference(ladder):
    import numpy as np

    generator = np.random.default_rng(0)
    results = "".join("W" if win else "L" for win in generator.random(4000) < 0.75)
    ladder.add(Match("m/1", "m/2", results, "judge", 4.0, "x"))
    one, two = ratings(ladder.matches())
    assert one.rating - two.rating == pytest.approx(400 * math.log10(3), abs=50)


def test_a_match_is_entered_once_and_races_lose_none(ladder):
    assert ladder.add(match("m/1", "m/2", "W", "report:judge")) and not ladder.add(
        match("m/1", "m/2", "W", "report:judge")
    )
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda n: ladder.add(match("m/1", f"m/{n + 3}", "T")), range(24)))
    assert len(ladder.matches()) == 25
    assert {each.b for each in ladder.matches()} == {"m/2", *(f"m/{n + 3}" for n in range(24))}


def test_damaged_files_and_matches_that_are_none_are_refused(ladder):
    with pytest.raises(ValueError, match="is no match"):
        ladder.add(match("m/1", "m/1", "W"))
    ladder.add(match("m/1", "m/2", "W"))
    (ladder.place.folder / "match-00000001.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"match-00000001.json is not a match"):
        ladder.matches()


def numbers(judge="v"):
    scores = {"aligned": [1.0, 0.0, 1.0, None], "champion": [0.0, 1.0, 1.0, 1.0]}
    responses = {policy: {"tuned": {"scores": {"v": values}}} for policy, values in scores.items()}
    policies = {"aligned": "wa", "champion": "wc"}
    return {"deciding_judge": judge, "responses": responses, "protocol": {"policies": policies}}


def test_a_registered_challenger_enters_by_its_report_and_evaluating_it_again_gives_the_same_page(ladder):
    assert games_of(numbers(), "v", "aligned", "champion") == "WLT"
    assert games_of(numbers(), "other", "aligned", "champion") == games_of(numbers(), None, "aligned", "sft") == ""
    versions = [SimpleNamespace(name="m", version=n, tags={"weights_sha256": w}) for n, w in (("2", "wa"), ("1", "wc"))]
    ladder.add(match("m/1", "n/7", "W", weights_a="wc", weights_b="wn"))
    before = ladder_for_report(ladder, numbers())
    assert [row["version"] for row in before] == ["m/1", "this challenger", "n/7"]
    assert enter_report(ladder, numbers(), versions, "r") and not enter_report(ladder, numbers(), versions, "r")
    assert not enter_report(ladder, numbers(None), versions, "r2")
    added = ladder.matches()[-1]
    assert (added.a, added.b, added.results, added.identity) == ("m/2", "m/1", "WLT", "r:v")
    assert ladder_for_report(ladder, numbers()) == before
