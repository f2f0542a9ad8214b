"""The report page: one HTML file that needs no network and no trust in what models write.

The browser runs one script, named by its digest in the page's policy; without scripts only search and filter are lost.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from understudy.evaluation.browser import browser_data, script, shown_responses
from understudy.evaluation.gate_view import GateAnswer
from understudy.evaluation.intervals import Interval
from understudy.evaluation.names import EXPERT_TEXT
from understudy.evaluation.plots import History, draw_plots
from understudy.evaluation.plots_pair import draw_gains, draw_ladder
from understudy.evaluation.provenance_tree import provenance_tree
from understudy.evaluation.result import EvaluationResult
from understudy.evaluation.sides import Pair, pair_of, side_by_side
from understudy.evaluation.slices import Slice, regressions_of, slices_of
from understudy.evaluation.verdict import LABELS, Comparison
from understudy.pages import load_template

MAX_SHOWN_CHARACTERS = 4000
_TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"
DECODINGS = {"greedy": "greedy", "T=1": "T = 1", "tuned": "tuned"}


@dataclass(frozen=True)
class Column:
    """One column of a metrics table and what it means to a reader."""

    key: str
    label: str
    meaning: str


COLUMNS = (
    Column("chrf_to_expert", "chrF", "Character overlap with the expert's answer to the same prompt, 0 to 100."),
    Column("classifier_auc", "AUC", "A fresh classifier's success at telling it from expert text; 0.5 is chance."),
    Column("distinct_2", "distinct-2", "Distinct word pairs over all word pairs; more is more varied."),
    Column("self_bleu", "self-BLEU", "Overlap of the responses with one another, 0 to 100; less is more varied."),
    Column("length_tokens", "tokens", "Mean length of a response."),
    Column("eos_rate", "ended", "Share of responses that end by themselves before the limit."),
    Column("kl_to_sft", "KL to SFT", "Drift from the SFT policy per response, in nats."),
)
LIKELIHOODS = (
    Column("nll", "NLL", "Negative log-likelihood of the expert's text per token, in nats; less is better."),
    Column("perplexity", "perplexity", "exp(NLL)."),
    Column("nll_minus_sft", "NLL − SFT", "Paired difference from SFT; below 0 is better than SFT."),
)


def render_report(
    result: EvaluationResult,
    histories: Mapping[str, History],
    provenance: Mapping[str, Any],
    title: str,
    gate: GateAnswer | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> str:
    """Return the page as HTML; equal arguments give equal bytes.

    Args:
        result: what was measured.
        histories: policy name → rows that its training logged.
        provenance: section title → mapping or JSON-like value (records, params, versions, digests).
        title: name of the model, for the heading and the window.
        gate: what the gate says, where there is a gate file.
        numbers: the content of report.json, for what others added to it: `judge_agreement`, `ladder`, `stopped_by`.
    """
    pair = pair_of(result)
    numbers = numbers or {}
    data, num_browsed = browser_data(result, pair, LABELS | {"expert": "expert"})
    code, code_source = script()
    page: str = load_template(_TEMPLATE, visible=visible, number=number).render(
        title=title,
        style=Markup((Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")),
        script=code,
        script_source=code_source,
        result=result,
        gate=gate,
        labels=LABELS | {"expert": "expert"},
        stopped_by=numbers.get("stopped_by"),
        pair=pair,
        sides=side_by_side(result, pair) if pair else [],
        metric_columns=_judge_columns(result) + list(COLUMNS),
        metric_rows=_metric_rows(result),
        likelihood_columns=LIKELIHOODS,
        comparisons=_in_order(result.comparisons),
        agreement=_agreement(numbers.get("judge_agreement")),
        plots=draw_gains(pair) + draw_plots(result, histories) + draw_ladder(numbers.get("ladder") or ()),
        regressions=_regressions(result, pair),
        num_decided=int(np.isfinite(pair.gain_P).sum()) if pair else 0,
        samples=[sample_card(result, index, ("sft", "champion", "aligned")) for index in result.shown],
        browser_data=data,
        num_browsed=num_browsed,
        all_metrics=_all_metrics(result),
        trees=provenance_tree(provenance),
        provenance=[(name, _flattened(value)) for name, value in provenance.items()],
        **_slices(result, pair),
    )
    return page


def visible(text: str) -> Markup:
    """Escape text and spell out what a browser would hide: control, format and bidirectional characters."""
    cut = text[:MAX_SHOWN_CHARACTERS]
    pieces: list[Markup] = []
    plain_from = 0
    for position, character in enumerate(cut):
        if character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}:
            continue
        if character in "\u200c\u200d":  # joiners that scripts and emoji need
            continue
        pieces += [escape(cut[plain_from:position]), _marked(character)]
        plain_from = position + 1
    pieces.append(escape(cut[plain_from:]))
    if len(text) > len(cut):
        pieces.append(Markup('<span class="control">{} more characters</span>').format(len(text) - len(cut)))
    return Markup("").join(pieces)


def number(value: float) -> str:
    """Format a number with three significant digits and a true minus sign."""
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return "0" if float(text) == 0 else text.replace("-", "−")


def _marked(character: str) -> Markup:
    name = unicodedata.name(character, "control character").lower()
    return Markup('<span class="control" title="{}">U+{:04X}</span>').format(name, ord(character))


def _judge_columns(result: EvaluationResult) -> list[Column]:
    return [Column(f"judge_{name}", name, f"Mean score of the judge {name}; more is better.") for name in result.judges]


def _metric_rows(result: EvaluationResult) -> list[dict[str, Any]]:
    """Return one row per policy and decoding, the expert's own text first."""
    rows: list[dict[str, Any]] = [
        {"policy": "expert", "decoding": "its own text", "values": result.metrics["expert"][EXPERT_TEXT]}
    ]
    for policy in result.policies:
        for decoding, label in DECODINGS.items():
            values = result.metrics[policy].get(decoding)
            if values is None:
                continue
            if decoding == "tuned":
                label = f"tuned, T = {result.temperatures[policy]:g}"
            num_prompts = len(result.generated[policy][decoding].samples)
            rows.append({"policy": policy, "decoding": label, "values": values, "n": num_prompts})
    return rows


def _in_order(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return sorted(comparisons, key=lambda comparison: comparison.win_rate is None)


def _all_metrics(result: EvaluationResult) -> list[tuple[str, str, str, Interval]]:
    return [
        (policy, decoding, name, interval)
        for policy, decodings in result.metrics.items()
        for decoding, values in decodings.items()
        for name, interval in sorted(values.items())
    ]


def _slices(result: EvaluationResult, pair: Pair | None) -> dict[str, Any]:
    """Return the slices, how far their bars reach, and how many would stand out by chance."""
    slices: list[Slice] = slices_of(result, pair) if pair else []
    measured = [each.difference for each in slices if each.difference]
    extent = max((max(abs(found.low), abs(found.high)) for found in measured if found.measured), default=0.0) or 1.0
    return {
        "slices": slices,
        "slice_extent": extent,
        "slices_standing_out": sum(each.stands_out for each in slices),
        "slices_by_chance": sum(found.measured for found in measured) * (1 - result.config.confidence),
    }


def _regressions(result: EvaluationResult, pair: Pair | None) -> list[dict[str, Any]]:
    if pair is None:
        return []
    gains = pair.gain_P
    return [
        sample_card(result, index, (pair.reference, pair.challenger)) | {"gain": number(float(gains[index]))}
        for index in regressions_of(pair)
    ]


def _agreement(found: Sequence[Mapping[str, Any]] | None) -> tuple[list[str], list[list[str]]] | None:
    """Return header and cells of how far judges agree, whatever is stated of each pair of them."""
    if not found:
        return None
    rows = [dict(_flattened(line)) for line in found]
    header = list(dict.fromkeys(key for row in rows for key in row))
    return header, [[_rounded(row.get(key, "")) for key in header] for row in rows]


def _rounded(text: str) -> str:
    try:
        return number(float(text)) if "." in text or "e" in text else text
    except ValueError:
        return text


def sample_card(result: EvaluationResult, index: int, policies: Sequence[str]) -> dict[str, Any]:
    """Return what a card shows of one test prompt: the expert's text, then each policy's."""
    row = result.test[index]
    texts = [{"policy": "expert", "text": row.response, "marks": _marks(result.expert_scores, index), "cut": False}]
    for policy in policies:
        generated = shown_responses(result, policy)
        if generated is not None and index < len(generated.samples):
            sample = generated.samples[index]
            marks = _marks(generated.scores, index)
            texts.append({"policy": policy, "text": sample.text, "marks": marks, "cut": not sample.finished})
    return {"prompt": row.prompt, "id": row.id, "group": row.group, "texts": texts}


def _marks(scores: Mapping[str, Any], index: int) -> list[tuple[str, str]]:
    return [
        (name, number(float(values[index])) if np.isfinite(values[index]) else "undecided")
        for name, values in scores.items()
        if index < len(values)
    ]


def _flattened(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as lines of dotted name and text."""
    if isinstance(value, Mapping) and value:
        return [line for key, item in value.items() for line in _flattened(item, f"{prefix}.{key}" if prefix else key)]
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return [line for index, item in enumerate(value) for line in _flattened(item, f"{prefix}[{index}]")]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
