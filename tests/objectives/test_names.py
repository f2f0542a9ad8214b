"""Every table of objectives answers an unknown name alike."""

from __future__ import annotations

import pytest
import torch

from understudy.objectives import divergence
from understudy.objectives.adversarial import AdversarialObjective
from understudy.objectives.likelihood import nll_sum_and_weight
from understudy.objectives.names import lookup
from understudy.objectives.selfplay import preference_loss


def _likelihood(name: str) -> object:
    return nll_sum_and_weight(
        name, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), horizon=2, discount=1.0, absorbing=False
    )


@pytest.mark.parametrize(
    ("ask", "name", "said"),
    [
        (divergence, "revers_kl", "Unknown divergence 'revers_kl'. Did you mean 'reverse_kl'? Known: .*, alpha:<a>"),
        (divergence, "alpha0.5", "Unknown divergence 'alpha0.5'. Did you mean 'alpha:0.5'? Known: "),
        (_likelihood, "token", "Unknown likelihood objective 'token'. Did you mean 'token_nll'? Known: token_nll, occ"),
        (
            preference_loss,
            "dppo",
            "Unknown preference loss 'dppo'. Did you mean 'dpo'? Known: dpo, ipo, kto, slic, spin",
        ),
        (
            lambda name: AdversarialObjective.from_names("js", "token", name),
            "logistics",
            "Unknown discriminator loss 'logistics'. Did you mean 'logistic'? Known: logistic, ",
        ),
        (lambda name: lookup({"one": 1, "two": 2}, name, "number"), "zzzz", "Unknown number 'zzzz'. Known: one, two."),
    ],
)
def test_an_unknown_name_comes_with_the_closest_and_all_known(ask: object, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("?", r"\?").replace(". ", r"\. ")):
        ask(name)  # type: ignore[operator]
