"""What an arm's samples are like, in tables: a fresh classifier's AUC, NLL, diversity, length, likeness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments.real import wording
from experiments.real.arms import ARMS
from experiments.real.resampling import of_seeds
from experiments.real.study import DECODINGS, Contender

Arms = dict[str, dict[int, dict[str, Any]]]
Measure = Callable[[dict[str, Any], str], float | None]  # of a cell at a decoding


def length(cell: dict[str, Any], decoding: str) -> float:
    """Characters of a response, on average."""
    lengths: list[int] = cell["decodings"][decoding]["lengths"]
    return sum(lengths) / len(lengths)


def nll(cell: dict[str, Any], decoding: str) -> float | None:
    """Nats a token of the expert's responses, whatever the decoding."""
    return sum(cell["nll"]) / sum(cell["expert_tokens"]) if "nll" in cell else None


def named(field: str) -> Measure:
    """What a cell tells by this name of a decoding."""
    return lambda cell, decoding: cell["decodings"][decoding].get(field)


GAPS: dict[str, tuple[Measure, int]] = {  # by its name in the table: what, and with how many digits
    "AUC": (named("auc"), 3),
    "AUC by MiniLM": (named("auc_minilm"), 3),
    "NLL": (nll, 3),
    "distinct-2": (named("distinct_2"), 3),
    "self-BLEU": (named("self_bleu"), 1),
    "length": (length, 0),
    "chrF": (named("chrf"), 1),
}


def samples_table(arms: Arms) -> str:
    """What the samples at T=1 are like, mean over seeds; some also at the tuned decoding."""
    heads = "arm | AUC | AUC, tuned | by MiniLM | by MiniLM, tuned | NLL | distinct-2 | distinct-2, tuned"
    heads += " | self-BLEU | length | length, tuned | chrF | disc. AUC"
    lines = [f"| {heads} |", "|---" * 13 + "|"]
    for name, cells in arms.items():
        plain, tuned = ([cell["decodings"][at] for cell in cells.values()] for at in DECODINGS)
        columns = [
            *(_auc(each, "auc") for each in (plain, tuned)),
            *(_auc(each, "auc_minilm") for each in (plain, tuned)),
            wording.number(of_seeds(nll(cell, "T=1") for cell in cells.values()), 3),
            *(wording.number(of_seeds(one["distinct_2"] for one in each), 3) for each in (plain, tuned)),
            wording.number(of_seeds(each["self_bleu"] for each in plain), 1),
            *(wording.number(of_seeds(length(cell, at) for cell in cells.values()), 1) for at in DECODINGS),
            wording.number(of_seeds(each["chrf"] for each in plain), 1),
            wording.number(of_seeds(cell.get("held_out_auc") for cell in cells.values()), 2),
        ]
        lines.append(f"| {ARMS[name].label} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def gaps_table(arms: Arms, theirs: Contender, whose: str) -> str:
    """The same, tuned, less what one SFT's are: paired by seed, with Student's 95% interval over seeds."""
    heads = " | ".join(GAPS)
    lines = [f"| tuned, less {whose} | {heads} |", "|---" * (len(GAPS) + 1) + "|"]
    for name in (name for name in arms if Contender(name, "tuned") != theirs):
        both = arms[name], arms[theirs.arm]
        columns = [_gap(measure, digits, *both, theirs.decoding) for measure, digits in GAPS.values()]
        lines.append(f"| {ARMS[name].label} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def _gap(
    measure: Measure, digits: int, ours: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]], decoding: str
) -> str:
    """Empty where it is not known of every seed that both have."""
    pairs = [(measure(ours[seed], "tuned"), measure(theirs[seed], decoding)) for seed in ours if seed in theirs]
    gaps = [mine - other for mine, other in pairs if mine is not None and other is not None]
    found = of_seeds(gaps) if len(gaps) == len(pairs) else None
    if found is None or found.n < 2:
        return ""
    return f"{found.value:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def _auc(made: list[dict[str, Any]], name: str) -> str:
    """Of a fresh classifier; empty where some seed's cell is from before it was measured."""
    known = [each[name] for each in made if each.get(name) is not None]
    return wording.shown(wording.clipped(of_seeds(known))) if len(known) == len(made) else ""
