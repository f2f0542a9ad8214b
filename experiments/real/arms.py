"""The arms: what is compared, each as values laid over the task's params."""

from __future__ import annotations

from dataclasses import dataclass

BEST_OF = 8


@dataclass(frozen=True)
class Arm:
    """One way to use the same demonstrations.

    Attributes:
        name: of its cells.
        label: in the tables.
        kind: "sft", "sft_longer", "best_of_n", "closed_form" or "align".
        overrides: `section.key=value` over the task's params.
        role: "sft" (a baseline that the bar is about), "baseline" or "ours".
        compute_of: the arm whose compute this one may spend; of kind "sft_longer" alone.
        keep: its weights, as `sft.keep`; of kind "sft_longer" alone.
        epochs: how long it goes on instead, where the compute of no arm is named.
        pretrained_rate: the policy's in alignment where all its weights come pretrained, over the arm's own.
    """

    name: str
    label: str
    kind: str
    overrides: tuple[str, ...]
    role: str
    compute_of: str = ""
    keep: str = ""
    epochs: int = 0
    pretrained_rate: float = 3e-5


def _ours(divergence: str, label: str, level: str) -> Arm:
    name = f"{divergence.replace(':', '_').replace('.', '')}_{level}"
    overrides = (f"align.divergence={divergence}", f"align.level={level}")
    return Arm(name, f"{label}, {level}", "align", overrides, "ours")


def _longer(name: str, compute: str, compute_of: str, keep: str) -> Arm:
    kept = "best NLL" if keep == "best_nll" else "last weights"
    return Arm(name, f"SFT, as much compute{compute}, {kept}", "sft_longer", (), "sft", compute_of, keep)


def _by_ngrams(name: str, label: str, short: str, overrides: tuple[str, ...]) -> tuple[Arm, ...]:
    """Best of n, reverse KL and what SFT does with its compute."""
    ours = f"reverse_kl_{name}"
    aligned = (*overrides, _NGRAMS_RATE)
    return (
        Arm(f"best_of_8_{name}", f"SFT, best of {BEST_OF} by {label}", "best_of_n", overrides, "baseline"),
        Arm(ours, f"reverse KL, sequence, by {label}", "align", aligned, "ours"),
        _longer(f"sft_longer_{name}", f" as by {short}", ours, "best_nll"),
        _longer(f"sft_longer_{name}_last", f" as by {short}", ours, "last"),
    )


_REVERSE_KL = ("align.divergence=reverse_kl", "align.level=sequence")
_NEW = (
    *_REVERSE_KL,
    "sft.withheld_fraction=0.2",
    "align.demonstrations=withheld",
    "align.discriminator.init=shared_trunk",
    "align.discriminator.learning_rate=5e-4",
    "align.discriminator.updates_per_round=8",
)
# A table of n-grams must have met most of them, so it sees more prompts and updates before the policy moves. Chosen on
# validation prompts of Ansible at 2,000, seed 0: docs/lab-notes.md, 2026-11-29.
_MORE_UPDATES = (
    "align.discriminator.batch_pairs=96",
    "align.discriminator.warmup_rounds=20",
    "align.discriminator.warmup_updates_per_round=20",
    "align.discriminator.updates_per_round=10",
)
_NGRAMS_RATE = "align.learning_rate=2e-4"
_NGRAMS = (
    *_REVERSE_KL,
    "align.discriminator.init=ngrams",
    "align.discriminator.learning_rate=1e-3",
    *_MORE_UPDATES,
)
# Where SFT is strongest: twice its epochs, overfitted; pipelines/runs/cpu.yaml plays from there.
_TWICE = ("sft.epochs=16", "sft.keep=last")
# Of many demonstrations the table must have met many, and each update of the policy has four times the samples. Chosen
# on validation prompts of all Ansible demonstrations, seed 100: docs/lab-notes.md, 2026-11-29.
_NGRAMS_WIDE = (*_NGRAMS, "align.rollout.prompts_per_round=96")


def _wide_ngrams(divergence: str, label: str) -> Arm:
    overrides = (*_NGRAMS_WIDE, f"align.divergence={divergence}", _NGRAMS_RATE)
    words = f"{label}, sequence, by n-grams, 96 prompts a round"
    return Arm(f"{divergence}_ngrams_wide", words, "align", overrides, "ours")


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("sft", "SFT", "sft", (), "sft"),
        _ours("reverse_kl", "**reverse KL**", "sequence"),
        _longer("sft_longer", "", "reverse_kl_sequence", "best_nll"),
        _longer("sft_longer_last", "", "reverse_kl_sequence", "last"),
        Arm("sft_smoothed", "SFT, label smoothing 0.1", "sft", ("sft.label_smoothing=0.1",), "sft"),
        Arm("sft_occupancy", "SFT by forward KL of occupancies", "sft", ("sft.objective=occupancy",), "baseline"),
        Arm("sft_trajectory", "SFT by forward KL of trajectories", "sft", ("sft.objective=trajectory",), "baseline"),
        Arm("best_of_8", f"SFT, best of {BEST_OF} by the discriminator", "best_of_n", (), "baseline"),
        Arm(
            "closed_form",
            "closed-form log-ratio reward",
            "closed_form",
            ("align.divergence=reverse_kl", "align.level=sequence", "align.reward_clip=1e6"),
            "baseline",
        ),
        Arm("spin", "SPIN", "align", ("align.method=selfplay", "align.selfplay.loss=dpo"), "baseline"),
        Arm("iterative_sft", "iterative SFT, best of a group", "align", ("align.method=iterative_sft",), "baseline"),
        # Its reward is learned before the policy moves: no fewer updates than the others' discriminators have in all.
        Arm(
            "rlhf_ppo",
            "RLHF, PPO",
            "align",
            ("align.method=rlhf", "align.discriminator.warmup_updates_per_round=24"),
            "baseline",
        ),
        _ours("js", "**JS**", "sequence"),
        _ours("alpha:0.5", "α = ½", "sequence"),
        _ours("forward_kl", "forward KL", "sequence"),
        _ours("reverse_kl", "**reverse KL**", "token"),
        _ours("js", "**JS**", "token"),
        _ours("alpha:0.5", "α = ½", "token"),
        _ours("forward_kl", "forward KL", "token"),
        # What the discriminator meets is new to the policy, and it reads the frozen policy: experiments/discriminators.
        Arm("reverse_kl_new", "reverse KL, sequence, a fifth withheld from SFT", "align", _NEW, "ours"),
        *_by_ngrams("ngrams", "a table of n-grams", "n-grams", _NGRAMS),
        *_by_ngrams("ngrams_wide", "n-grams, 96 prompts a round", "n-grams, 96 prompts", _NGRAMS_WIDE),
        Arm(
            "reverse_kl_ngrams_wide_x3",
            "reverse KL, sequence, by n-grams, 96 prompts a round, thrice the rate",
            "align",
            (*_NGRAMS_WIDE, "align.learning_rate=6e-4"),
            "ours",
            pretrained_rate=9e-5,
        ),
        Arm(
            "reverse_kl_ngrams_wide_lengths",
            "reverse KL, sequence, by n-grams and lengths, 96 prompts a round",
            "align",
            (*_NGRAMS_WIDE, "align.discriminator.ngram_lengths=true", _NGRAMS_RATE),
            "ours",
        ),
        # As the stability runs have it, or until a health gate ends it, and SFT for as much compute.
        Arm(
            "reverse_kl_ngrams_wide_x5",
            "reverse KL, sequence, by n-grams, 96 prompts a round, five times the rounds",
            "align",
            (*_NGRAMS_WIDE, "align.num_rounds=120", _NGRAMS_RATE),
            "ours",
        ),
        _longer(
            "sft_longer_ngrams_wide_x5_last",
            " as by n-grams, 96 prompts, five times the rounds",
            "reverse_kl_ngrams_wide_x5",
            "last",
        ),
        # Whether it is the n-grams that gain, or how much and how fast is learned with them.
        Arm(
            "reverse_kl_more_updates",
            "reverse KL, sequence, by a network with the n-grams' updates and rate",
            "align",
            (*_REVERSE_KL, *_MORE_UPDATES, _NGRAMS_RATE),
            "ours",
        ),
        # With the settings that were chosen for reverse KL.
        _wide_ngrams("js", "**JS**"),
        _wide_ngrams("forward_kl", "forward KL"),
        Arm("sft_twice", "SFT, 16 epochs, last weights", "sft", _TWICE, "sft"),
        Arm(
            "js_sequence_twice",
            "JS, sequence, from 16 epochs' last weights",
            "align",
            ("align.divergence=js", "align.level=sequence", *_TWICE),
            "ours",
        ),
        Arm(
            "reverse_kl_ngrams_twice",
            "reverse KL, sequence, by a table of n-grams, from 16 epochs' last weights",
            "align",
            (*_NGRAMS, _NGRAMS_RATE, *_TWICE),
            "ours",
        ),
        Arm(
            "sft_longer_twice",
            "SFT, 16 epochs and as much compute as JS from there, last weights",
            "sft_longer",
            _TWICE,
            "sft",
            "js_sequence_twice",
            "last",
        ),
        # Of many demonstrations an arm's compute is a small part of SFT's: as much again as SFT itself.
        Arm("sft_8_more_last", "SFT, 8 epochs more, last weights", "sft_longer", (), "sft", keep="last", epochs=8),
        # At 2,000 demonstrations more compute than 40 rounds with 96 prompts take, known before they are run.
        Arm("sft_more_last", "SFT, 24 epochs more, last weights", "sft_longer", (), "sft", keep="last", epochs=24),
    )
}
