"""The ground truth itself, against counting by hand and against simulation."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from understudy.exact.divergences import forward_kl, sequence_divergence, token_divergence
from understudy.exact.mdp import TokenMDP, policy_table
from understudy.objectives import DIVERGENCES


def _by_hand(vocab: int, horizon: int) -> set[tuple[int, ...]]:
    eos, responses = vocab - 1, set()
    for tokens in itertools.product(range(vocab), repeat=horizon):
        end = tokens.index(eos) + 1 if eos in tokens else horizon
        responses.add(tokens[:end])
    return responses


@pytest.mark.parametrize(("vocab", "horizon"), [(2, 2), (2, 5), (3, 4), (4, 3)])
def test_every_response_once(vocab: int, horizon: int) -> None:
    mdp = TokenMDP.enumerate(vocab, horizon)
    rows = [tuple(token[mask].tolist()) for token, mask in zip(mdp.token_NC, mdp.mask_NC, strict=True)]
    assert len(rows) == len(set(rows))
    assert set(rows) == _by_hand(vocab, horizon)
    assert [row[-1] == vocab - 1 for row in rows] == mdp.finished_N.tolist()


def test_enumeration_is_fast() -> None:
    started = time.process_time()
    mdp = TokenMDP.enumerate(4, 6)
    mdp.log_occupancy(torch.zeros(mdp.num_states, 4, dtype=torch.float64))
    assert mdp.num_responses == 1093 and mdp.num_states == 364
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("kind", ["random", "peaked", "bimodal", "zeros"])
def test_probabilities_and_occupancies_agree(kind: str) -> None:
    mdp = TokenMDP.enumerate(4, 4)
    logits = policy_table(mdp, kind, torch.Generator().manual_seed(0))
    probability = mdp.log_trajectory(logits).exp()
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-12)
    occupancy = mdp.log_occupancy(logits).exp()
    # with absorbing states every time step has mass 1
    assert (mdp.occupancy_weight(1.0, True) * occupancy).sum().item() == pytest.approx(4.0, abs=1e-12)
    length = (probability * mdp.mask_NC.sum(dim=1)).sum()
    assert (mdp.occupancy_weight(1.0, False) * occupancy).sum().item() == pytest.approx(length.item(), abs=1e-12)
    back = mdp.log_trajectory(mdp.logits_of(probability)).exp()
    torch.testing.assert_close(back, probability)


def test_divergences_against_a_loop() -> None:
    mdp = TokenMDP.enumerate(3, 3)
    generator = torch.Generator().manual_seed(1)
    expert, policy = policy_table(mdp, "random", generator), policy_table(mdp, "random", generator)
    p, q = mdp.log_trajectory(expert).exp().tolist(), mdp.log_trajectory(policy).exp().tolist()
    kl = sum(b * (torch.tensor(b) / a).log().item() for a, b in zip(p, q, strict=True))
    assert sequence_divergence(mdp, DIVERGENCES["reverse_kl"], expert, policy).item() == pytest.approx(kl, abs=1e-6)
    # occupancy KL with absorbing states: one KL per time step, prefixes held after EOS
    total = 0.0
    for step in range(3):
        mass: dict[tuple[int, ...], list[float]] = {}
        for row in range(mdp.num_responses):
            prefix = tuple(mdp.token_NC[row][mdp.mask_NC[row]].tolist()[: step + 1])
            both = mass.setdefault(prefix, [0.0, 0.0])
            both[0] += p[row]
            both[1] += q[row]
        total += sum(a * (torch.tensor(a) / b).log().item() for a, b in mass.values())
    value = token_divergence(mdp, DIVERGENCES["forward_kl"], expert, policy, discount=1.0, absorbing=True)
    assert value.item() == pytest.approx(total, abs=1e-6)
    assert forward_kl(mdp, expert, expert) == 0


def test_soft_optimal_policy_is_a_policy() -> None:
    mdp = TokenMDP.enumerate(3, 4)
    reward = policy_table(mdp, "random", torch.Generator().manual_seed(2))
    logpi, _ = mdp.soft_optimal(reward)
    torch.testing.assert_close(logpi.exp().sum(dim=1), torch.ones(mdp.num_states, dtype=torch.float64))
    best = torch.softmax(mdp.along_responses(reward).sum(dim=1), dim=0)
    torch.testing.assert_close(mdp.log_trajectory(logpi).exp(), best)
    with pytest.raises(ValueError, match="2,000,000"):
        TokenMDP.enumerate(50, 9)
