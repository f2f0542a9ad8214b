"""Proofs 7, 8 and the first half of 11: Bradley-Terry and Elo, self-play, best-of-n, and the RLHF baseline."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from understudy.exact.divergences import forward_kl
from understudy.exact.mdp import TokenMDP, policy_table
from understudy.exact.production import gradient, small_enough
from understudy.exact.report import Row, relative_error
from understudy.objectives import best_of_n, bradley_terry, policy_gradient, ppo, selfplay
from understudy.objectives.discriminator import DISCRIMINATOR_LOSSES, DiscriminatorScores
from understudy.objectives.divergences import DIVERGENCES
from understudy.objectives.selfplay import PreferencePairs

NUM_PLAYERS = 8


def bradley_terry_family(generator: torch.Generator) -> Iterator[Row]:
    """Proof 7: strengths and variances are recovered from matches; Eq 26 is free of scale; Elo finds the strengths."""
    score_P = torch.randn(NUM_PLAYERS, generator=generator, dtype=torch.float64)
    score_P = score_P - score_P.mean()
    spread_P = (0.5 * torch.randn(NUM_PLAYERS, generator=generator, dtype=torch.float64)).exp()
    spread_P = (spread_P.log() - spread_P.log().mean()).exp()
    a, b = torch.tensor(list(itertools.permutations(range(NUM_PLAYERS), 2))).T

    for link in bradley_terry.LINKS:
        win_P = _win_probability(link, score_P[a] - score_P[b]).double()

        def with_link(raw: Tensor, link: str = link, win_P: Tensor = win_P) -> Tensor:
            return -(win_P * bradley_terry.log_win_probability(raw[0][a], raw[0][b], link=link)).mean()

        fitted = _fit(with_link, 1)
        error = float((fitted[0] - fitted[0].mean() - score_P).abs().max())
        yield Row(7, "14 Bradley-Terry" if link == "logistic" else "15 links", f"{link} link: strengths", error, 1e-4)

    gap = (score_P[a] - score_P[b]) / ((spread_P[a] ** 2 + spread_P[b] ** 2) / 2).sqrt()
    win_P = torch.sigmoid(gap)

    def with_spread(raw: Tensor) -> Tensor:
        spread = bradley_terry.fixed_scale_spread(raw[1])
        logit = bradley_terry.preference_logit(raw[0][a], raw[0][b], spread[a], spread[b])
        return bradley_terry.reward_model_loss(logit, weight=win_P / win_P.sum())

    fitted = _fit(with_spread, 2)
    error = float((fitted[0] - fitted[0].mean() - score_P).abs().max())
    yield Row(7, "15 learned variance", "Eq 26: strengths, scale fixed by mean log V = 0", error, 1e-3)
    error = float((bradley_terry.fixed_scale_spread(fitted[1]) - spread_P).abs().max())
    yield Row(7, "15 learned variance", "Eq 26: spreads V", error, 1e-3)
    scaled = bradley_terry.preference_logit(7 * score_P[a], 7 * score_P[b], 7 * spread_P[a], 7 * spread_P[b])
    yield Row(
        7, "15 learned variance", "Eq 26 does not change under (7R, 7V)", float((scaled - gap).abs().max()), 1e-12
    )
    yield _elo(score_P, generator)


def _win_probability(link: str, gap: Tensor) -> Tensor:
    """Eq 24, 25 and 27 as printed, with V = 1: written apart from the production code."""
    if link == "probit":
        return 0.5 + 0.5 * torch.erf(gap / math.sqrt(2 * 2))
    if link == "tanh":
        return 0.5 + 0.5 * torch.tanh(gap / math.sqrt(2 * 2))
    return 1 / (1 + torch.exp(-gap))


def _fit(loss_of: Callable[[Tensor], Tensor], rows: int) -> Tensor:
    raw = torch.zeros(rows, NUM_PLAYERS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [raw], max_iter=2000, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(raw)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    step: Callable[..., object] = optimizer.step
    step(closure)
    return raw.detach()


def _elo(score_P: Tensor, generator: torch.Generator) -> Row:
    """20,000 simulated games with a falling step; the error is in units of the Bradley-Terry strength."""
    ratings = [1500.0] * NUM_PLAYERS
    games = 20_000
    players = torch.randint(NUM_PLAYERS, (games, 2), generator=generator).tolist()
    luck = torch.rand(games, generator=generator).tolist()
    sums, counted = [0.0] * NUM_PLAYERS, 0
    for game, ((a, b), chance) in enumerate(zip(players, luck, strict=True)):
        if a == b:
            continue
        won = float(chance < 1 / (1 + math.exp(float(score_P[b] - score_P[a]))))
        step = 32.0 / (1 + game / 500)
        ratings[a], ratings[b] = bradley_terry.elo_update(ratings[a], ratings[b], won, step=step)
        if game >= games // 2:
            sums, counted = [total + rating for total, rating in zip(sums, ratings, strict=True)], counted + 1
    rating_P = torch.tensor(sums, dtype=torch.float64) / counted * math.log(10) / 400
    error = float((rating_P - rating_P.mean() - score_P).abs().max())
    return Row(7, "16 Elo, online", "20,000 games: largest error of a strength", error, 0.25)


def self_play(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 8, self-play: each loss starts uphill for the expert, reaches it, and stops there."""
    mdp = small_enough(vocab, horizon, limit=64)
    expert_SV = policy_table(mdp, "random", generator)
    start_SV = policy_table(mdp, "random", generator)
    for name in selfplay.PREFERENCE_LOSSES:
        system = "10 DPO and SPIN" if name == "dpo" else "11 IPO, KTO, SLiC"
        policy_SV = start_SV.clone().requires_grad_(True)
        first = gradient(_pairs_loss(mdp, name, policy_SV, start_SV, expert_SV), policy_SV)
        margin = mdp.log_trajectory(expert_SV).exp() - mdp.log_trajectory(start_SV).exp()
        margin_SV = gradient((margin * mdp.log_trajectory(policy_SV)).sum(), policy_SV)
        cosine = float((-first * margin_SV).sum() / (first.norm() * margin_SV.norm()))
        yield Row(8, system, f"{name}: 1 - cosine(step, d(log pi(expert) - log pi(sample)))", 1 - cosine, 1e-9)
        yield Row(8, system, f"{name}: KL(expert || policy) reached", _play(mdp, name, policy_SV, expert_SV), 1e-3)
        equal_SV = expert_SV.clone().requires_grad_(True)
        rest = gradient(_pairs_loss(mdp, name, equal_SV, expert_SV, expert_SV), equal_SV)
        error = float(rest.norm() / first.norm())
        yield Row(8, system, f"{name}: stops when samples equal the expert", error, 1e-9)


def _pairs_loss(mdp: TokenMDP, name: str, policy_SV: Tensor, opponent_SV: Tensor, expert_SV: Tensor) -> Tensor:
    num = mdp.num_responses
    row_e, row_s = torch.arange(num).repeat_interleave(num), torch.arange(num).repeat(num)
    logp_N, opponent_N = mdp.log_trajectory(policy_SV), mdp.log_trajectory(opponent_SV).detach()
    weight = mdp.log_trajectory(expert_SV).exp()[row_e] * opponent_N.exp()[row_s]
    pairs = PreferencePairs(logp_N[row_e], logp_N[row_s], opponent_N[row_e], opponent_N[row_s], weight)
    return selfplay.PREFERENCE_LOSSES[name](pairs, beta=0.5)


def _play(mdp: TokenMDP, name: str, policy_SV: Tensor, expert_SV: Tensor, iterations: int = 120) -> float:
    """Iterations of two steps each against an opponent refreshed at their start."""
    optimizer = torch.optim.Adam([policy_SV], lr=0.1, betas=(0.5, 0.99))
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = 0.15 * (1 - iteration / iterations)
        opponent_SV = policy_SV.detach().clone()
        for _ in range(2):
            policy_SV.grad = gradient(_pairs_loss(mdp, name, policy_SV, opponent_SV, expert_SV), policy_SV)
            optimizer.step()
    return forward_kl(mdp, expert_SV, policy_SV.detach())


def best_of(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proofs 8 and 11, best-of-n: its distribution by enumeration, its KL, and fine-tuning on the best."""
    mdp = small_enough(vocab, min(horizon, 3))
    expert_N = mdp.log_trajectory(policy_table(mdp, "random", generator)).exp()
    policy_N = mdp.log_trajectory(policy_table(mdp, "random", generator)).exp()
    score_N = (expert_N / policy_N).log()
    for label, score in (("distinct scores", score_N), ("tied scores", (2 * score_N).round())):
        truth = _enumerated_best_of_two(policy_N, score)
        error = float((best_of_n.best_of_n_distribution(policy_N, score, 2) - truth).abs().max())
        yield Row(11, "12 best-of-n", f"distribution of best of 2, {label}, by enumeration", error, 1e-12)
    best_N = best_of_n.best_of_n_distribution(policy_N, score_N, 4)
    excess = float((best_N * (best_N / policy_N).log()).sum()) - best_of_n.best_of_n_kl_bound(4)
    yield Row(11, "12 best-of-n", "KL(best of 4 || policy) - (log 4 - 3/4), at most 0", excess, 1e-12)
    sample_N = torch.multinomial(policy_N, 400_000, replacement=True, generator=generator)
    kept = sample_N[best_of_n.select_best(score_N[sample_N], 4)]
    seen_N = torch.bincount(kept, minlength=len(policy_N)).double() / len(kept)
    error = float((seen_N - best_N).abs().sum()) / 2
    yield Row(11, "12 best-of-n", "100,000 selections match it: total variation", error, 0.02)
    equal_N = best_of_n.best_of_n_distribution(expert_N, torch.zeros_like(expert_N), 4)
    yield Row(
        8, "12 iterative SFT", "stops when samples equal the expert", float((equal_N - expert_N).abs().max()), 1e-12
    )
    start, current_N = _kl(expert_N, policy_N), policy_N
    for iteration in range(600):
        best_N = best_of_n.best_of_n_distribution(current_N, (expert_N / current_N).log(), 2)
        rate = 0.3 / (1 + iteration / 10)
        current_N = (1 - rate) * current_N + rate * best_N
    yield Row(8, "12 iterative SFT", "KL(expert || policy) reached / at start", _kl(expert_N, current_N) / start, 0.05)


def _kl(first_N: Tensor, second_N: Tensor) -> float:
    return float((first_N * (first_N / second_N).log()).sum())


def _enumerated_best_of_two(policy_N: Tensor, score_N: Tensor) -> Tensor:
    joint_NN = policy_N[:, None] * policy_N[None, :]
    wins_NN = (score_N[:, None] > score_N[None, :]).double() + 0.5 * (score_N[:, None] == score_N[None, :]).double()
    return 2 * (joint_NN * wins_NN).sum(dim=1)


def rlhf(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 8, RLHF: reward model on expert > sample, then PPO-clip with a value head and beta = 1 KL to the start."""
    mdp = small_enough(vocab, horizon, limit=64)
    expert_SV = policy_table(mdp, "random", generator)
    reference_SV = policy_table(mdp, "random", generator)
    reward_N = _reward_model(mdp, expert_SV, reference_SV)
    truth_N = mdp.log_trajectory(expert_SV) - mdp.log_trajectory(reference_SV)
    error = float((reward_N - truth_N - (reward_N - truth_N).mean()).abs().max())
    yield Row(8, "13 RLHF", "reward model on expert > sample pairs: R = log u + c", error, 1e-3)

    policy_SV = reference_SV.clone().requires_grad_(True)
    value_S = torch.zeros(mdp.num_states, dtype=torch.float64, requires_grad=True)
    kl_at_start = forward_kl(mdp, expert_SV, reference_SV)
    policy_optimizer = torch.optim.Adam([policy_SV], lr=0.1, betas=(0.5, 0.99))
    value_optimizer = torch.optim.Adam([value_S], lr=0.3, betas=(0.5, 0.9))
    rounds = 150
    for round_index in range(rounds):
        policy_optimizer.param_groups[0]["lr"] = 0.1 * (1 - round_index / rounds)
        _ppo_round(mdp, reward_N, reference_SV, policy_SV, value_S, policy_optimizer, value_optimizer)
    reached = forward_kl(mdp, expert_SV, policy_SV.detach())
    yield Row(8, "13 RLHF", "PPO with beta = 1: KL(expert || policy) reached / at start", reached / kl_at_start, 0.01)
    yield _ppo_gradient(mdp, generator)


def _reward_model(mdp: TokenMDP, expert_SV: Tensor, reference_SV: Tensor) -> Tensor:
    """Minimise the production pairwise loss over one score a response, in coordinates scaled by its probability."""
    weights = [mdp.log_trajectory(table).exp() for table in (expert_SV, reference_SV)]
    scale_N = (weights[0] + weights[1]).sqrt()
    scaled_N = torch.zeros(mdp.num_responses, dtype=torch.float64, requires_grad=True)
    loss_row, ones = DISCRIMINATOR_LOSSES["bradley_terry"], torch.ones(mdp.num_responses, 1, dtype=torch.bool)
    prompt_N = torch.zeros(mdp.num_responses, dtype=torch.long)
    optimizer = torch.optim.LBFGS(
        [scaled_N], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        score_N1 = (scaled_N / scale_N)[:, None]
        expert, policy = (DiscriminatorScores(score_N1, ones, prompt_N, None, weight) for weight in weights)
        loss = loss_row(expert, policy, divergence=DIVERGENCES["reverse_kl"])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    step: Callable[..., object] = optimizer.step
    step(closure)
    return (scaled_N / scale_N).detach()


def _ppo_round(
    mdp: TokenMDP,
    reward_N: Tensor,
    reference_SV: Tensor,
    policy_SV: Tensor,
    value_S: Tensor,
    policy_optimizer: torch.optim.Optimizer,
    value_optimizer: torch.optim.Optimizer,
) -> None:
    old_NC = mdp.response_logps(policy_SV).detach()
    weight_N = old_NC.sum(dim=1).exp()
    penalty_NC = policy_gradient.kl_penalty_to_reference(old_NC, mdp.response_logps(reference_SV))
    reward_NC = policy_gradient.place_at_end(reward_N, mdp.mask_NC) - penalty_NC
    old_value_NC = value_S.detach()[mdp.state_NC]
    advantage_NC, return_NC = ppo.generalised_advantage(
        reward_NC, old_value_NC, mdp.mask_NC, discount=1.0, gae_lambda=0.95
    )
    for _ in range(2):
        loss, _ = ppo.ppo_clip_loss(mdp.response_logps(policy_SV), old_NC, advantage_NC, mdp.mask_NC, weight_B=weight_N)
        policy_SV.grad = gradient(loss, policy_SV)
        policy_optimizer.step()
        value_loss = ppo.value_loss(value_S[mdp.state_NC], old_value_NC, return_NC, mdp.mask_NC)
        value_S.grad = gradient(value_loss, value_S)
        value_optimizer.step()


def _ppo_gradient(mdp: TokenMDP, generator: torch.Generator) -> Row:
    """At pi = pi_old PPO's gradient is the policy gradient's, whatever the advantage."""
    policy_SV = policy_table(mdp, "random", generator).requires_grad_(True)
    old_NC = mdp.response_logps(policy_SV).detach()
    weight_N = old_NC.sum(dim=1).exp()
    advantage_NC = torch.randn(old_NC.shape, generator=generator, dtype=torch.float64)
    loss, _ = ppo.ppo_clip_loss(mdp.response_logps(policy_SV), old_NC, advantage_NC, mdp.mask_NC, weight_B=weight_N)
    plain = policy_gradient.policy_gradient_loss(
        mdp.response_logps(policy_SV), advantage_NC, mdp.mask_NC, weight_B=weight_N
    )
    error = relative_error(gradient(loss, policy_SV), gradient(plain, policy_SV))
    return Row(8, "13 RLHF", "PPO-clip at pi = pi_old has the policy gradient", error, 1e-12)
