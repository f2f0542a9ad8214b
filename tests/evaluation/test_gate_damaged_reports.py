"""A report that was cut or bent is refused in words; none of it makes a challenger pass that would not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from evaluation.gates import make_gate

from understudy.errors import GateRefused
from understudy.evaluation.gate import decide

NUM = 40
BENT = (None, "x", -1, float("inf"), [], {}, [[1]], {"a": 1})


def report(shift=0.1):
    generator = np.random.default_rng(0)

    def responses(mean):
        ones, scores = [1] * NUM, [float(score) for score in generator.normal(mean, 0.05, NUM)]
        made = {"seed": 5, "temperature": 0.5, "num_tokens": ones, "num_characters": ones, "finished": ones}
        return {"tuned": made | {"scores": {"quality": scores}, "sets": {}}}

    return {
        "protocol": {
            "policies": {"aligned": "a" * 64, "champion": "b" * 64}, "dataset_md5": "m", "judges": {"quality": "c"},
        },
        "prompts": [{"id": f"p{index}", "group": f"g{index}", "cluster": f"g{index}"} for index in range(NUM)],
        "responses": {"aligned": responses(0.5 + shift), "champion": responses(0.5)},
        "likelihood": {"policies": {}, "characters": []},
    }  # fmt: skip


def paths(value, path=()):
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(min(2, len(value))) if isinstance(value, list) else ():
        yield from paths(value[key], (*path, key))


def verdict(gate, found) -> str:
    try:
        return decide(gate, found, "aligned", "champion").verdict
    except GateRefused:
        return "refused"


def test_no_cut_and_no_bend_ends_in_another_error_or_makes_a_tie_pass():
    gate, whole = make_gate(), report(shift=0.0)
    assert verdict(gate, whole) != "pass" and verdict(gate, report()) == "pass"
    seen = []
    for path in paths(whole):
        for change in ("cut", *BENT):
            bent = copy.deepcopy(whole)
            node = bent
            for key in path[:-1]:
                node = node[key]
            if change == "cut":
                del node[path[-1]]
            else:
                node[path[-1]] = change
            seen.append(verdict(gate, bent))
    assert len(seen) > 300 and "pass" not in seen and seen.count("refused") > 200


@pytest.mark.parametrize("score", [float("inf"), float("-inf"), 1e200])
def test_a_score_beyond_all_measure_is_refused(score):
    found = report()
    found["responses"]["aligned"]["tuned"]["scores"]["quality"][3] = score
    with pytest.raises(GateRefused, match="The report is damaged where it tells of 'aligned'.*is no score"):
        decide(make_gate(), found, "aligned", "champion")
