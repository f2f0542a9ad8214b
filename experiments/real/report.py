"""The tables in Markdown, from the cells: all of them, one row for each task and size, and the rule of choice."""

from __future__ import annotations

from typing import Any

from experiments.real import bar2, wording
from experiments.real.arms import ARMS
from experiments.real.resampling import mean, of_seeds
from experiments.real.samples import gaps_table, length, samples_table
from experiments.real.study import (
    DECIDING,
    DECODINGS,
    Cells,
    Contender,
    Key,
    best_of,
    best_sft,
    judged,
    on_validation,
    win_rate,
)
from experiments.real.tasks import TASKS

Arms = dict[str, dict[int, dict[str, Any]]]
# Judges that decide nothing, by their name in the cells.
OTHERS = {
    "module": "valid, of the module that was asked for",
    "collection": "valid, of the collection that was asked for",
    "minilm": "MiniLM",
    "chrf": "chrF",
}
SIZES = {"500": "few: 500", "2000": "2,000", "all": "many: all"}
BY_NGRAMS = ("reverse_kl_ngrams_wide", "js_ngrams_wide", "forward_kl_ngrams_wide")
TALKED_OF = frozenset(
    ("sft", "sft_longer_last", "reverse_kl_sequence", "js_sequence", "forward_kl_sequence", "best_of_8")
    + BY_NGRAMS
    + tuple(
        f"{kind}_ngrams{width}"
        for kind in ("reverse_kl", "best_of_8", "sft_longer")
        for width in ("", "_wide", "_wide_lengths", "_wide_x5")
    )
)
SAYS_NOTHING = 0.05  # a score that both stay below: nobody is right, so nobody is better
ROLES = {"sft": "SFT", "ours": "ours", "baseline": "the other baselines"}


def pages(cells: Cells) -> dict[str, dict[str, str]]:
    """The blocks that cells fill, by page of docs/."""
    return {
        "results-real.md": {"real-tables": tables(cells)},
        "results.md": {
            "real-summary": summary(cells),
            "real-choice": choice(cells),
            "real-few": briefly(cells.get(Key("ansible", "2000"), {})),
            "real-many": briefly(cells.get(Key("ansible_all", "all"), {})),
            "real-divergences": divergences(cells.get(Key("ansible_all", "all"), {})),
            "real-bar2": bar2.block(cells),
            "real-bar2-scratch": bar2.scratch_table(cells),
        },
    }


def tables(cells: Cells) -> str:
    """For each task and size: scores and wins by each judge, then what the samples are like."""
    return "\n\n".join(part for key, arms in cells.items() if "sft" in arms for part in _of_one(key, arms))


def printed(cells: Cells) -> str:
    """The tables, and bar 2's verdict where some of the cells are of a pretrained policy."""
    return "\n\n".join([tables(cells), *([bar2.block(cells)] if any(map(bar2.is_pretrained, cells)) else [])])


def summary(cells: Cells) -> str:
    """A row for each task and size: the best SFT, of ours and other baseline, each chosen on validation rows."""
    heads = ["task, demonstrations", "seeds, arms", "best SFT", "best of ours", "wins over best SFT", "at equal length"]
    heads += ["best other baseline", "wins over best SFT", "at equal length"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for key, arms in cells.items():
        best = best_sft(arms)
        named = f"{key.task}, {wording.size(key.size)}{wording.in_brackets(key)}"
        columns = [named, f"{_num_seeds(arms)}, {len(arms)}", _scored(best, arms)]
        for role in ("ours", "baseline"):
            other = best_of(role, arms)
            columns += [_scored(other, arms), *_both_wins(other, best, arms)] if other else ["", "", ""]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def choice(cells: Cells) -> str:
    """What to choose, by what the task is like and how many demonstrations there are: a row for each measurement."""
    heads = "task | demonstrations | seeds | won, at equal length | best of ours against the best SFT, at equal length"
    lines = [f"| | {heads} |", "|---" * 6 + "|"]
    for open_ended, label in ((True, "open-ended"), (False, "close-ended")):
        names = [name for name, task in TASKS.items() if task.open_ended == open_ended]
        keys = [key for key in cells if key.task in names]
        for key in sorted(keys, key=lambda key: (list(SIZES).index(key.size), names.index(key.task))):
            task = f"{key.task}{wording.in_brackets(key)} | {SIZES[key.size]} | {_num_seeds(cells[key])}"
            lines.append(f"| {label} | {task} | {' | '.join(_chosen(cells[key]))} |")
        unknown = [size for size in SIZES if not any(key.size == size for key in keys)]
        lines += [f"| {label} | | {SIZES[size]} | | not measured | |" for size in unknown]
    return "\n".join(lines)


def briefly(arms: Arms) -> str:
    """The arms that are talked of, at their tuned decodings: scores, wins, and what the answers are like."""
    if "sft" not in arms:
        return "Not measured."
    best = best_sft(arms)
    heads = "arm | score | wins over best SFT | at equal length | chrF | distinct-2 | characters"
    lines = [f"| {heads} |", "|---" * 7 + "|"]
    for name in (name for name in arms if name in TALKED_OF or name == best.arm):
        tuned = [cell["decodings"]["tuned"] for cell in arms[name].values()]
        columns = [
            _shown_score(Contender(name, "tuned"), arms),
            *_both_wins(Contender(name, "tuned"), best, arms),
            wording.number(of_seeds(each["chrf"] for each in tuned), 1),
            wording.number(of_seeds(each["distinct_2"] for each in tuned), 3),
            wording.number(of_seeds(length(cell, "tuned") for cell in arms[name].values()), 0),
        ]
        lines.append(f"| {ARMS[name].label} | " + " | ".join(columns) + " |")
    return "\n".join([*lines, *_over_every_sft(arms)])


def divergences(arms: Arms) -> str:
    """The divergences where one wins, with all else alike: each over the best SFT and over the first of them, tuned."""
    names = [name for name in BY_NGRAMS if name in arms]
    if "sft" not in arms or not names:
        return "Not measured."
    best, first = best_sft(arms), Contender(names[0], "tuned")
    label = wording.contender(first).split(",")[0]
    heads = f"arm | score | wins over best SFT | at equal length | wins over {label} | at equal length"
    lines = [f"| {heads} |", "|---" * 6 + "|"]
    for name in names:
        ours = Contender(name, "tuned")
        both = [*_both_wins(ours, best, arms), *_both_wins(ours, first, arms)]
        lines.append(f"| {ARMS[name].label} | {_shown_score(ours, arms)} | {' | '.join(both)} |")
    return "\n".join(lines)


def _over_every_sft(arms: Arms) -> list[str]:
    """The best of ours against each SFT, since which of them is best is chance where they hardly differ."""
    ours = best_of("ours", arms)
    if ours is None:
        return []
    lines = ["", f"| {wording.contender(ours)} over | score | wins | at equal length |", "|---" * 4 + "|"]
    for name, *same in sft_policies(arms):
        theirs = Contender(name, "tuned")
        score = _shown_score(theirs, arms)
        label = "; the same policy: ".join(ARMS[each].label for each in (name, *same))
        lines.append(f"| {label} | {score} | {' | '.join(_both_wins(ours, theirs, arms))} |")
    return lines


def sft_policies(arms: Arms) -> list[list[str]]:
    """The SFT arms, those together that are one policy: trained on, it may keep the weights that it started from."""
    found: dict[str, list[str]] = {}
    for name in (name for name in arms if ARMS[name].role == "sft"):
        found.setdefault(repr(_answers(arms[name])), []).append(name)
    return list(found.values())


def _answers(cells: dict[int, dict[str, Any]]) -> dict[int, tuple[str, list[Any], list[Any]]]:
    """What tells policies apart: decoding, and score and length of each answer."""
    tuned = {seed: (cell["tuned"], cell["decodings"]["tuned"]) for seed, cell in cells.items()}
    return {seed: (chosen, made["scores"], made["lengths"]) for seed, (chosen, made) in tuned.items()}


def _chosen(arms: Arms) -> tuple[str, str]:
    best, ours = best_sft(arms), best_of("ours", arms)
    if ours is None:
        return "", "no divergence was run"
    _, wins = win_rate(arms[ours.arm], ours.decoding, arms[best.arm], best.decoding)
    theirs, mine = wording.contender(best), wording.contender(ours)
    compared = f"{mine} against {theirs}: {wording.percent(wins)}"
    scores = [mean(judged(arms[each.arm], each.decoding)) for each in (best, ours)]
    if all(score and score.value < SAYS_NOTHING for score in scores):
        return "hardly a response is right", compared
    if wins and wins.high < 0.5:
        return f"**{theirs}**", compared
    if wins and wins.low > 0.5:
        return f"**{mine}**", compared
    return "no difference shown", compared


def _of_one(key: Key, arms: Arms) -> list[str]:
    task = TASKS[key.task]
    some = sorted(len(cells) for cells in arms.values())
    uneven = "" if some[0] == some[-1] else f", from {some[0]} to {some[-1]} for an arm"
    bests = [(label, best) for role, label in ROLES.items() if (best := best_of(role, arms))]
    chosen = [
        f"of {label}, {wording.contender(best)} {on_validation(arms[best.arm], best.decoding):.3f}"
        for label, best in bests
    ]
    head = f"## {task.name}, {wording.size(key.size)} demonstrations{wording.in_brackets(key)}\n\n"
    head += f"{_seeds(arms)}{uneven}. Best on validation rows, with the score there: {'; '.join(chosen)}."
    best = best_sft(arms)
    shown = [head, wins_table(arms, best, task.judge)]
    for judge, label in OTHERS.items():
        known = _asked(judge, arms)
        if best.arm in known:
            shown.append(wins_table(known, best, label, judge))
    plain = Contender("sft", "tuned")
    gaps = [gaps_table(arms, best, "the best SFT's"), *([gaps_table(arms, plain, "SFT's")] if best != plain else [])]
    return [*shown, start_table(arms), samples_table(arms), *gaps]


def wins_table(arms: Arms, best: Contender, label: str, judge: str = DECIDING) -> str:
    """Score by one judge at both decodings, and how often each arm beats the best SFT on the same prompt."""
    wins_of = "tuned: wins over best SFT | at equal length | T=1: wins over best SFT | at equal length"
    lines = [f"| arm | {label}, T=1 | {label}, tuned | {wins_of} |", "|---" * 7 + "|"]
    for name, cells in arms.items():
        columns = [wording.shown(mean(judged(cells, decoding, judge))) for decoding in DECODINGS]
        for decoding in reversed(DECODINGS):
            columns += _both_wins(Contender(name, decoding), best, arms, judge)
        lines.append(f"| {ARMS[name].label} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def start_table(arms: Arms) -> str:
    """How often each arm beats plain SFT, decoded alike, and that policy trained on for the arm's own compute."""
    heads = "arm | over SFT, both T=1 | both tuned | both tuned, at equal length | tuned: over SFT of its own compute"
    lines = [f"| {heads} |", "|---" * 5 + "|"]
    for name in (name for name in arms if name != "sft"):
        plain, tuned = (win_rate(arms[name], at, arms["sft"], at) for at in DECODINGS)
        longer = next((arm for arm in arms if ARMS[arm].compute_of == name and ARMS[arm].keep == "best_nll"), None)
        against = win_rate(arms[name], "tuned", arms[longer], "tuned")[0] if longer else None
        columns = [wording.percent(each) for each in (plain[0], *tuned, against)]
        lines.append(f"| {ARMS[name].label} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _asked(judge: str, arms: Arms) -> Arms:
    """The arms that this judge has judged in every cell; none where it says the deciding judge's again."""
    plain = {name: [cell["decodings"]["T=1"] for cell in cells.values()] for name, cells in arms.items()}
    known = {name: each for name, each in plain.items() if all(judge in one.get("others", {}) for one in each)}
    says_more = any(one["others"][judge] != one["scores"] for each in known.values() for one in each)
    return {name: arms[name] for name in known} if says_more else {}


def _both_wins(ours: Contender, best: Contender, arms: Arms, judge: str = DECIDING) -> list[str]:
    if ours == best:
        return ["(itself)", ""]
    both = win_rate(arms[ours.arm], ours.decoding, arms[best.arm], best.decoding, judge)
    return [wording.percent(each) for each in both]


def _scored(contender: Contender, arms: Arms) -> str:
    return f"{wording.contender(contender)}: {_shown_score(contender, arms)}"


def _shown_score(contender: Contender, arms: Arms) -> str:
    return wording.shown(mean(judged(arms[contender.arm], contender.decoding)))


def _num_seeds(arms: Arms) -> int:
    return len({seed for cells in arms.values() for seed in cells})


def _seeds(arms: Arms) -> str:
    num = _num_seeds(arms)
    return "one seed, so that intervals are over prompts alone" if num == 1 else f"{num} seeds"
