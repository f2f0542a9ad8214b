"""The protocol of bar 1: which runs, on which seeds, and what they add up to.

Reported seeds are 0-9 (curves 0-4). Learning rates, rounds and samples were chosen on seeds 100-104.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.bar1.baselines import ClosedForm, IterativeSFT, SelfPlay, best_decoding, best_of_n
from experiments.bar1.learn import Game, Settings, half_cosine, sft
from experiments.bar1.seeds import difference
from experiments.bar1.world import NUM_CODEWORDS, Markov, World, measure, per_seed
from understudy.objectives.divergences import Divergence, divergence

OURS = ("reverse_kl", "js", "forward_kl")
BASELINES = ("sft", "sft_tuned")
UNCLIPPED = 1e6
Results = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Protocol:
    """Sizes of the whole experiment.

    Attributes:
        seeds: of the main table.
        curve_seeds: of the curves.
        orders: capacities of the policy.
        demonstrations: numbers of demonstrations of a seed.
        base_order: capacity outside the capacity curve.
        base_demonstrations: number outside the demonstrations curve.
        sft_steps: of full-batch Adam, enough to converge.
        exact_steps: of Adam on the true divergence.
        game: settings of every game.
    """

    seeds: tuple[int, ...] = tuple(range(10))
    curve_seeds: tuple[int, ...] = tuple(range(5))
    orders: tuple[int, ...] = (0, 1, 2, 3)
    demonstrations: tuple[int, ...] = (100, 500, 2_000, 10_000)
    base_order: int = 1
    base_demonstrations: int = 2_000
    sft_steps: int = 300
    exact_steps: int = 1500
    game: Settings = Settings()

    @classmethod
    def smoke(cls) -> Protocol:
        """Seconds instead of minutes: the same path, numbers without meaning."""
        game = replace(Settings(), rounds=12, warmup_rounds=4, samples=16)
        return cls((0, 1), (0,), (0, 1), (100, 200), base_demonstrations=200, sft_steps=20, exact_steps=20, game=game)


def run(protocol: Protocol, say: Say) -> Results:
    """Run everything; the result is plain JSON values."""
    torch.use_deterministic_algorithms(True)
    main = main_table(protocol, say)
    few = World.make(protocol.curve_seeds, protocol.base_demonstrations)
    capacity = {str(order): curve_point(few, order, protocol, say) for order in protocol.orders}
    demonstrations = {}
    for num in protocol.demonstrations:
        world = World.make(protocol.curve_seeds, num)
        demonstrations[str(num)] = curve_point(world, protocol.base_order, protocol, say)
    return {
        "protocol": asdict(protocol),
        "main": main,
        "differences": differences(main),
        "capacity": capacity,
        "demonstrations": demonstrations,
    }


def main_table(protocol: Protocol, say: Say) -> Results:
    """Every method and baseline on all reported seeds."""
    world = World.make(protocol.seeds, protocol.base_demonstrations)
    settings = protocol.game
    start = start_policy(world, protocol.base_order, protocol)
    table: Results = {}

    def add(name: str, policy: Markov, **extra: object) -> None:
        table[name] = numbers(policy, world) | extra
        say(f"{name}: validity {sum(table[name]['validity']) / len(protocol.seeds):.3f}")

    for name, policy, decoding in sft_rows(start, world, protocol):
        add(name, policy, **({"decoding": decoding} if decoding else {}))
    for name, game in games(start, world, settings):
        policy = game.play()
        add(name, policy)
        if name in OURS:
            tuned, decoding = best_decoding(policy, world.word_RMT)
            add(f"{name}_tuned", tuned, decoding=decoding)
    for name in ("js", "alpha:0.5", "forward_kl"):
        add(f"exact_{name}", exact_optimum(divergence(name), start, world.word_RMT, protocol.exact_steps))
    only_warmup = replace(settings, warmup_rounds=settings.rounds)  # as many rounds as the games have
    warm = Game("reverse_kl", only_warmup, *_of(start, world))
    warm.play()
    for num, p_RM in best_of_n(warm, start, world.word_RMT, (8, 64)).items():
        hit = per_seed((p_RM >= 0.1 / NUM_CODEWORDS).sum(-1))
        table[f"best_of_{num}"] = {"validity": per_seed(p_RM.sum(-1)).tolist(), "modes": hit.tolist()}
        say(f"best of {num}: validity {per_seed(p_RM.sum(-1)).mean():.3f}")
    return table


def _of(start: Markov, world: World) -> tuple[Markov, Tensor, int]:
    return start, world.train_RNT, 7


def start_policy(world: World, order: int, protocol: Protocol) -> Markov:
    """SFT, from which every game starts."""
    return sft(Markov.uniform(len(world.word_RMT), order), world.train_RNT, protocol.sft_steps)


def sft_rows(start: Markov, world: World, protocol: Protocol) -> Iterable[tuple[str, Markov, list[str] | None]]:
    """SFT and what can be done for it without own samples: name, policies, chosen decodings."""
    yield "sft", start, None
    yield "sft_tuned", *best_decoding(start, world.word_RMT)
    yield "sft_longer", sft(start, world.train_RNT, protocol.game.rounds), None
    uniform = Markov.uniform(len(world.word_RMT), start.order)
    smoothed = sft(uniform, world.train_RNT, protocol.sft_steps, label_smoothing=0.1)
    yield "sft_smoothed", smoothed, None
    yield "sft_smoothed_tuned", *best_decoding(smoothed, world.word_RMT)


def games(start: Markov, world: World, settings: Settings) -> Iterable[tuple[str, Game]]:
    """Everything that learns from its own samples, with the same settings but where the name says otherwise."""
    given = _of(start, world)
    for name in (*OURS, "alpha:0.5"):
        yield name, Game(name, settings, *given)
    yield "forward_kl_unclipped", Game("forward_kl", replace(settings, reward_clip=UNCLIPPED), *given)
    half = settings.rounds // 2
    frozen = replace(settings, warmup_rounds=half, frozen_after_warmup=True)
    yield "frozen_reward", Game("reverse_kl", frozen, *given)
    yield "closed_form", ClosedForm("reverse_kl", replace(settings, warmup_rounds=0), *given)
    yield "iterative_sft", IterativeSFT("reverse_kl", settings, *given)
    yield "spin", SelfPlay("reverse_kl", replace(settings, warmup_rounds=0), *given)


def curve_point(world: World, order: int, protocol: Protocol, say: Say) -> Results:
    """SFT, its best decoding and the three divergences at one capacity and number of demonstrations."""
    start = start_policy(world, order, protocol)
    table: Results = {"sft": numbers(start, world)}
    tuned, decoding = best_decoding(start, world.word_RMT)
    table["sft_tuned"] = numbers(tuned, world) | {"decoding": decoding}
    for name in OURS:
        table[name] = numbers(Game(name, protocol.game, *_of(start, world)).play(), world)
        validity = sum(table[name]["validity"]) / len(protocol.curve_seeds)
        say(f"order {order}, {world.train_RNT.shape[1]} demonstrations a prompt, {name}: validity {validity:.3f}")
    return table


def numbers(policy: Markov, world: World) -> dict[str, list[float]]:
    """Exact measures, one number a seed."""
    exact = measure(policy, world.word_RMT)
    return {name: [round(value, 6) for value in per_seed(each).tolist()] for name, each in vars(exact).items()}


def exact_optimum(row: Divergence, start: Markov, word_RMT: Tensor, steps: int, rate: float = 0.05) -> Markov:
    """Descend the true D_f(expert || policy) itself from SFT: what it asks for, without samples and discriminator.

    D_f = E_policy[f(u)] = sum over codewords of p f(q/p) + (1 - validity) f(0); needs a finite f(0), so not reverse KL.
    """
    logits = start.logits_RTCV.double().clone().requires_grad_(True)
    policy, q = start.with_logits(logits), 1 / word_RMT.shape[1]
    optimizer = torch.optim.Adam([logits], lr=rate)
    nothing = row.f(torch.zeros((), dtype=torch.float64))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * half_cosine(step / steps)
        p_RM = policy.logp(word_RMT).sum(-1).exp().clamp(min=1e-30)
        value_R = (p_RM * row.f(q / p_RM)).sum(-1) + (1 - p_RM.sum(-1)) * nothing
        optimizer.zero_grad()
        torch.autograd.backward(value_R.sum())
        optimizer.step()
    return policy.with_logits(logits.detach())


def differences(main: Results) -> Results:
    """Paired difference in validity of each of ours over each baseline, with 95% intervals over seeds."""
    made: Results = {}
    for name in (*OURS, "forward_kl_unclipped"):
        for baseline in BASELINES:
            found, won = difference(main[name]["validity"], main[baseline]["validity"])
            limits = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
            made[f"{name} - {baseline}"] = limits | {"won": won}
    return made


def bar_holds(results: Results) -> bool:
    """Reverse KL and JS beat both baselines, lower bound above 0; forward KL does not beat both."""
    low = {name: each["low"] for name, each in results["differences"].items()}
    beats = {name: all(low[f"{name} - {baseline}"] > 0 for baseline in BASELINES) for name in OURS}
    return beats["reverse_kl"] and beats["js"] and not beats["forward_kl"]
