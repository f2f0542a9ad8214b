"""Proof 7: Bradley-Terry, its links, learned variance and Elo recover what simulated matches were made of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from understudy.exact.report import Row
from understudy.objectives import bradley_terry

NUM_PLAYERS = 8
GAMES = 20_000
STANDARD_ERRORS = 6.0  # two-sided and for 8 players: once in 60 million runs


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
    """Games between random players with a falling step; the error is in units of the Bradley-Terry strength."""
    ratings = [1500.0] * NUM_PLAYERS
    players = torch.randint(NUM_PLAYERS, (GAMES, 2), generator=generator).tolist()
    luck = torch.rand(GAMES, generator=generator).tolist()
    sums, counted = [0.0] * NUM_PLAYERS, 0
    for game, ((a, b), chance) in enumerate(zip(players, luck, strict=True)):
        if a == b:
            continue
        won = float(chance < 1 / (1 + math.exp(float(score_P[b] - score_P[a]))))
        step = 32.0 / (1 + game / 500)
        ratings[a], ratings[b] = bradley_terry.elo_update(ratings[a], ratings[b], won, step=step)
        if game >= GAMES // 2:
            sums, counted = [total + rating for total, rating in zip(sums, ratings, strict=True)], counted + 1
    rating_P = torch.tensor(sums, dtype=torch.float64) / counted * math.log(10) / 400
    error = float((rating_P - rating_P.mean() - score_P).abs().max())
    bound = STANDARD_ERRORS * _standard_error(score_P, GAMES // 2)
    return Row(7, "16 Elo, online", f"{GAMES:,} games: largest error of a strength", error, bound)


def _standard_error(score_P: Tensor, games: int) -> float:
    """Largest standard error of a strength that any unbiased estimate from so many games has (Cramer-Rao).

    Fisher information of one game between random players: sum_ab p (1 - p) (e_a - e_b)(e_a - e_b)^T / P^2. A falling
    step with averaged iterates attains it in the limit (Polyak & Juditsky 1992).
    """
    win_PP = torch.sigmoid(score_P[:, None] - score_P[None, :])
    weight_PP = 2 * win_PP * (1 - win_PP) / NUM_PLAYERS**2
    information_PP = torch.diag(weight_PP.sum(dim=1)) - weight_PP
    return float((torch.linalg.pinv(information_PP).diagonal().max() / games).sqrt())
