"""The sample browser's data and code: JSON that no text can break out of, and one script that the page allows by hash.

Row: [id, group, prompt, its characters left out, gain or null,
[[text, characters left out, [[judge, score or null], …], ended], …]]
with one text per column, null where a policy has none.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from understudy.evaluation.result import EvaluationResult, Generated
from understudy.evaluation.sides import Pair

COLUMNS = ("expert", "sft", "champion", "aligned")
TEXT_LIMITS = (4000, 2000, 1000, 500, 250, 100)  # characters; the first with which all fits
MAX_BYTES = 3_000_000
_ALSO_IN_JSON = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def browser_data(result: EvaluationResult, pair: Pair | None, labels: dict[str, str]) -> tuple[Markup, int]:
    """Return the rows as JSON to stand inside a script element, and how many rows there are.

    Long texts are cut until all fit into MAX_BYTES, then rows are left out, those drawn by the seed last.
    """
    columns = [name for name in COLUMNS if name == "expert" or shown_responses(result, name) is not None]
    drawn = set(result.shown)
    order = [*result.shown, *(row for row in range(len(result.test)) if row not in drawn)]
    whole: dict[str, Any] = {
        "columns": [[name, labels.get(name, name)] for name in columns],
        "measure": pair.measure if pair else None,
    }
    text, rows = "", []
    for limit in TEXT_LIMITS:
        rows = [_row(result, pair, columns, index, limit) for index in order]
        text = embedded(whole | {"rows": rows})
        if len(text.encode()) <= MAX_BYTES:
            return Markup(text), len(rows)
    size = len(text.encode()) / max(1, len(rows))
    kept = rows[: max(1, int(0.9 * MAX_BYTES / size))]
    return Markup(embedded(whole | {"rows": kept})), len(kept)


def embedded(content: Any) -> str:
    """Return JSON in which no `</script>`, `<!--`, line separator or lone surrogate is left as itself."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _ALSO_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def script() -> tuple[Markup, str]:
    """Return the page's script and the source expression that lets a browser run it and no other."""
    text = (Path(__file__).parent / "templates" / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"


def shown_responses(result: EvaluationResult, policy: str) -> Generated | None:
    """Return a policy's responses at its tuned temperature, else at T=1; None when it was not sampled."""
    by_decoding = result.generated.get(policy, {})
    return by_decoding.get("tuned") or by_decoding.get("T=1")


def _row(result: EvaluationResult, pair: Pair | None, columns: Sequence[str], index: int, limit: int) -> list[Any]:
    row = result.test[index]
    gain = float(pair.gain_P[index]) if pair else float("nan")
    texts: list[Any] = []
    for name in columns:
        if name == "expert":
            texts.append([*_cut(row.response, limit), _scores(result.expert_scores, index), True])
            continue
        generated = shown_responses(result, name)
        assert generated is not None
        if index >= len(generated.samples):
            texts.append(None)
            continue
        sample = generated.samples[index]
        texts.append([*_cut(sample.text, limit), _scores(generated.scores, index), sample.finished])
    return [row.id, row.group, *_cut(row.prompt, limit), round(gain, 6) if np.isfinite(gain) else None, texts]


def _cut(text: str, limit: int) -> tuple[str, int]:
    return text[:limit], max(0, len(text) - limit)


def _scores(scores: Any, index: int) -> list[tuple[str, float | None]]:
    return [
        (name, round(float(values[index]), 6) if np.isfinite(values[index]) else None)
        for name, values in scores.items()
        if index < len(values)
    ]
