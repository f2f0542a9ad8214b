"""The reward model that evaluation trains, on a tiny policy whose samples are noise."""

from __future__ import annotations

import numpy as np
import pytest
from support.small_policy import write_small_policy

from understudy.config import BradleyTerryJudgeConfig, JudgeConfig
from understudy.data.demonstrations import Demonstration
from understudy.errors import UnderstudyError
from understudy.evaluation.judges import load_judge
from understudy.evaluation.judges_bradley_terry import BradleyTerryJudge
from understudy.evaluation.result import Sample
from understudy.models.loading import load_policy


def rows(num_rows, start=0):
    found = []
    for index in range(start, start + num_rows):
        prompt = f"task {index % 7}"
        message = ({"role": "user", "content": prompt},)
        found.append(Demonstration(str(index), f"g{index}", message, prompt, f"- good {index % 5}"))
    return found


class Policies:
    """The samples say bad where the expert says good, with the same numbers."""

    def __init__(self, folder, same=False):
        self.loaded, self.same, self.asked = load_policy(folder), same, []

    def policy(self, name):
        assert name == "sft"
        return self.loaded

    def sample(self, policy, demonstrations, decoding, seed):
        self.asked += [(policy, row.id) for row in demonstrations]
        texts = [row.response if self.same else row.response.replace("good", "bad") for row in demonstrations]
        return [Sample(text, 1, True) for text in texts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_policy(tmp_path_factory.mktemp("policy") / "policy")


def trained(folder, same=False, **changes):
    config = BradleyTerryJudgeConfig(**{"num_pairs": 64, "epochs": 4, "learning_rate": 3e-3} | changes)
    judge, policies = BradleyTerryJudge("bt", config), Policies(folder, same)
    judge.fit(policies, rows(80), rows(24, 1000), 7, 0.95)
    return judge, policies


@pytest.mark.parametrize("learned_spread", [False, True])
def test_it_learns_what_tells_expert_from_sft_and_leaves_sft_as_it_was(folder, learned_spread):
    judge, policies = trained(folder, learned_spread=learned_spread)
    before = load_policy(folder).model.state_dict()
    assert all((value == before[name]).all() for name, value in policies.loaded.model.state_dict().items())
    assert judge.accuracy.value > 0.95 and judge.accuracy.n == 24
    found = judge.scores(["task 1", "task 1"], ["- good 3", "- bad 3"], ["", ""])
    assert found[0] > found[1] + 1
    assert judge.report()["train_pairs"] == 64 and "right on 100%" in judge.note()
    asked = [int(identity) for _, identity in policies.asked]
    assert max(asked[:64]) < 80 and min(asked[64:]) >= 1000 and {name for name, _ in policies.asked} == {"sft"}


def test_where_both_write_the_same_it_knows_nothing_and_says_so(folder):
    judge, _ = trained(folder, same=True, epochs=1)
    assert judge.accuracy.value == 0.5
    assert "right on 50%" in judge.note()


def test_the_same_seed_gives_the_same_scores_and_batches_do_not_matter(folder):
    (one, _), (other, _) = trained(folder, epochs=1), trained(folder, epochs=1)
    prompts, texts = ["task 1", "a longer task 2"], ["- good 3", "- bad 3 and something more\n" * 30]
    together = one.scores(prompts, texts, ["", ""])
    np.testing.assert_array_equal(together, other.scores(prompts, texts, ["", ""]))
    alone = [one.scores([prompt], [text], [""])[0] for prompt, text in zip(prompts, texts, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_untrained_it_refuses():
    judge = load_judge(JudgeConfig(name="bt", kind="bradley_terry"))
    with pytest.raises(UnderstudyError, match="'bt' is trained inside the evaluate step"):
        judge.scores(["p"], ["r"], ["e"])
