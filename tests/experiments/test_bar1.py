"""Bar 1: what it measures is exact, what it trains is the production objective, what it reports is in the repo."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.bar1 import world as bar1_world
from experiments.bar1.__main__ import main
from experiments.bar1.baselines import ClosedForm, best_decoding, best_of_n
from experiments.bar1.learn import Discriminators, Game, Settings, sft
from experiments.bar1.report import tables
from experiments.bar1.study import bar_holds, differences, exact_optimum
from experiments.bar1.world import NUM_POSITIONS, NUM_TOKENS, Markov, World, measure, per_seed
from understudy.objectives.divergences import divergence

ROOT = Path(__file__).parents[2]
EVERY_NT = torch.tensor(list(itertools.product(range(NUM_TOKENS), repeat=NUM_POSITIONS)))
QUICK = Settings(rounds=160, warmup_rounds=40)


def _random_policy(order: int, num_rows: int = 1) -> Markov:
    generator = torch.Generator().manual_seed(order)
    shape = (num_rows, NUM_POSITIONS, NUM_TOKENS**order, NUM_TOKENS)
    return Markov(torch.randn(shape, generator=generator, dtype=torch.float64), order)


@pytest.fixture(scope="module")
def world() -> World:
    return World.make([100], 400)


@pytest.fixture(scope="module")
def start(world: World) -> Markov:
    return sft(Markov.uniform(len(world.word_RMT), 1), world.train_RNT, 200)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_probabilities_of_all_words_sum_to_one_and_samples_follow_them(order: int) -> None:
    policy = _random_policy(order)
    p_N = policy.logp(EVERY_NT[None]).sum(-1)[0].exp()
    assert float(p_N.sum()) == pytest.approx(1, abs=1e-9)
    sample_NT = policy.sample(20_000, torch.Generator().manual_seed(1))[0]
    for first, second in ((0, 2), (3, 5), (4, 5)):
        joint, seen = (np.zeros((NUM_TOKENS, NUM_TOKENS)) for _ in range(2))
        np.add.at(joint, (EVERY_NT[:, first].numpy(), EVERY_NT[:, second].numpy()), p_N.numpy())
        np.add.at(seen, (sample_NT[:, first].numpy(), sample_NT[:, second].numpy()), 1 / len(sample_NT))
        assert np.abs(joint - seen).max() < 0.012


def test_measures_agree_with_a_sum_over_all_words() -> None:
    word_RMT = World.make([3], 40).word_RMT[:1]
    policy = _random_policy(2)
    place = NUM_TOKENS ** np.arange(NUM_POSITIONS)[::-1]
    q = np.zeros(len(EVERY_NT))
    q[(word_RMT[0].numpy() * place).sum(-1)] = 1 / 12
    p = policy.logp(EVERY_NT[None]).sum(-1)[0].exp().numpy()
    middle, written = (p + q) / 2, q > 0
    js = 0.5 * (q[written] * np.log(q[written] / middle[written])).sum() + 0.5 * (p * np.log(p / middle)).sum()
    exact = measure(policy, word_RMT)
    assert float(exact.validity) == pytest.approx(p[written].sum(), rel=1e-9)
    assert float(exact.js) == pytest.approx(js, rel=1e-9)
    assert float(exact.forward_kl) == pytest.approx((q[written] * np.log(q[written] / p[written])).sum(), rel=1e-9)
    assert int(exact.modes) == (p[written] >= 0.1 / 12).sum()


def test_a_seeds_expert_does_not_depend_on_its_neighbours() -> None:
    alone, beside = World.make([5], 40), World.make([4, 5], 40)
    assert torch.equal(alone.word_RMT, beside.word_RMT[4:]) and torch.equal(alone.train_RNT, beside.train_RNT[4:])
    assert not torch.equal(beside.word_RMT[:4], beside.word_RMT[4:])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sft_reaches_the_frequencies_of_the_demonstrations(world: World, smoothing: float) -> None:
    policy = sft(Markov.uniform(4, 0), world.train_RNT, 300, label_smoothing=smoothing)
    count_RTV = torch.nn.functional.one_hot(world.train_RNT, NUM_TOKENS).double().mean(dim=1)
    expected = (1 - smoothing) * count_RTV + smoothing / NUM_TOKENS
    assert (torch.softmax(policy.logits_RTCV[:, :, 0], -1) - expected).abs().max() < 5e-3


def test_sft_counts_repeated_demonstrations() -> None:
    one, other = torch.zeros(NUM_POSITIONS, dtype=torch.long), torch.ones(NUM_POSITIONS, dtype=torch.long)
    policy = sft(Markov.uniform(1, 0), torch.stack([one, one, one, other])[None], 300)
    assert float(torch.softmax(policy.logits_RTCV[0, 0, 0], -1)[0]) == pytest.approx(0.75, abs=5e-3)


def test_the_game_beats_sft_and_the_divergences_keep_their_order(world: World, start: Markov) -> None:
    rows = slice(0, 2)
    policy, words, train = start.with_logits(start.logits_RTCV[rows]), world.word_RMT[rows], world.train_RNT[rows]
    before = float(measure(policy, words).validity.mean())
    reached = {
        name: float(measure(Game(name, QUICK, policy, train, 7).play(), words).validity.mean())
        for name in ("reverse_kl", "js", "forward_kl")
    }
    assert before < 0.2 < reached["forward_kl"] < reached["js"] < reached["reverse_kl"], (before, reached)
    assert reached["reverse_kl"] > 0.6, reached


def test_a_row_learns_the_same_alone_as_beside_others(world: World, start: Markov) -> None:
    def gradient(rows: slice) -> Tensor:
        part = start.with_logits(start.logits_RTCV[rows])
        game = Game("js", replace(QUICK, samples=16), part, world.train_RNT[rows], 7)
        game.discriminator = _rows_of(Discriminators(4, 64, torch.Generator().manual_seed(3)), rows)
        sample = start.sample(16, torch.Generator().manual_seed(4))[rows]
        (found,) = torch.autograd.grad(len(sample) * game.policy_loss(sample), game.policy.logits_RTCV)
        return found

    assert gradient(slice(0, 4)).abs().max() > 1e-3
    assert torch.allclose(gradient(slice(0, 4))[2:3], gradient(slice(2, 3)), atol=1e-6)


def _rows_of(whole: Discriminators, rows: slice) -> Discriminators:
    part = copy.deepcopy(whole)
    for parameter in part.parameters():
        parameter.data = parameter.data[rows].clone()
    return part


def test_best_decoding_is_one_a_seed_and_never_worse_than_sampling() -> None:
    world = World.make([100, 101], 200)
    start = sft(Markov.uniform(8, 1), world.train_RNT, 200)
    chosen, names = best_decoding(start, world.word_RMT)
    assert len(names) == 2
    plain, best = (per_seed(measure(each, world.word_RMT).validity) for each in (start, chosen))
    assert bool((best >= plain - 1e-6).all()) and float(best.max()) > 2 * float(plain.max())
    kind, value = names[1].split()
    again = start.at_temperature(float(value)) if kind == "temperature" else start.at_top_p(float(value))
    assert float(per_seed(measure(again, world.word_RMT).validity)[1]) == pytest.approx(float(best[1]), rel=1e-9)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(1, NUM_POSITIONS, 1, 4)
    kept = torch.softmax(Markov(logits, 0).at_top_p(0.7).logits_RTCV[0, 0, 0], -1)
    assert kept.tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_best_of_one_is_the_policy_and_more_are_better(world: World, start: Markov) -> None:
    row, words = start.with_logits(start.logits_RTCV[:1]), world.word_RMT[:1]
    game = Game("reverse_kl", QUICK, row, world.train_RNT[:1], 7)
    for _ in range(100):
        game.update_discriminator(row.sample(64, game.generator))
    found = best_of_n(game, row, words, (1, 8))
    policy_RM = row.logp(words).sum(-1).exp()
    assert torch.allclose(found[1], policy_RM.double(), atol=1e-6)
    assert float(found[8].sum()) > 2 * float(found[1].sum())


def test_the_closed_form_reward_is_the_log_ratio_of_sft_to_uniform(world: World, start: Markov) -> None:
    words = world.word_RMT
    game = ClosedForm("reverse_kl", QUICK, start, world.train_RNT, 7)
    expected = start.logp(words).sum(-1) + NUM_POSITIONS * math.log(NUM_TOKENS)
    assert torch.allclose(game.raw_outputs(words)[:, :, -1, 0], expected, atol=1e-5)


def test_exact_descent_of_forward_kl_ends_at_the_maximum_of_likelihood() -> None:
    world = World.make([100], 40)
    every_word = world.word_RMT
    maximum = sft(Markov.uniform(4, 1), every_word, 400)
    found = exact_optimum(divergence("forward_kl"), Markov.uniform(4, 1), every_word, 800)
    best, reached = (measure(each, every_word).forward_kl for each in (maximum, found))
    assert torch.allclose(best, reached, atol=5e-3)


def test_the_committed_numbers_hold_the_bar_and_stand_in_the_page() -> None:
    results = json.loads((ROOT / "experiments/bar1/results.json").read_text())
    assert bar_holds(results)
    assert len(results["protocol"]["seeds"]) == 10 and not set(results["protocol"]["seeds"]) & set(range(100, 105))
    assert differences(results["main"]) == results["differences"]
    page = (ROOT / "docs/results.md").read_text()
    missing = [line for line in tables(results).splitlines() if line and line not in page]
    assert not missing


@pytest.mark.parametrize(
    ("pair", "low"), [("js - sft_tuned", 0.0), ("reverse_kl - sft", -0.1), ("forward_kl - sft_tuned", 0.1)]
)
def test_the_bar_falls_with_any_of_its_parts(pair: str, low: float) -> None:
    results = json.loads((ROOT / "experiments/bar1/results.json").read_text())
    results["differences"][pair]["low"] = low
    assert not bar_holds(results)


@pytest.mark.slow
def test_a_smoke_run_writes_numbers_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bar1_world, "NUM_PROMPTS", 2)
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        assert main(["--smoke", "--out", str(tmp_path)]) == 0
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert "| **reverse KL** |" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["capacity"]) == ["0", "1"] and len(results["main"]["js"]["validity"]) == 2
    for name in ("bar1.svg", "bar1-curves.svg"):
        assert (tmp_path / name).read_text().rstrip().endswith("</svg>")
