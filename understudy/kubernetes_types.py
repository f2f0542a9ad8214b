"""Types of what Kubernetes checks in manifests, so that a typo is refused here and in words."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator


def _matching(pattern: str, what: str) -> AfterValidator:
    """Refuse text that does not match, in words."""
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"is not {what}")
        return text

    return AfterValidator(check)


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


_QUANTITY = _matching(r"\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?", "a quantity such as 500m, 16 or 512Gi")
_IMAGE = _matching(
    r"[a-z0-9][\w.:-]*(/[\w.-]+)*/[\w.-]*python[\w.-]*(:[\w.-]+|@sha256:[0-9a-f]{64})",
    "an image name with a tag or digest and with 'python' in its name, as KFP wants it",
)
Name = Annotated[
    str, _matching(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", "a name as Kubernetes has it: lower case, -, .")
]
Quantity = Annotated[str, BeforeValidator(_as_text), _QUANTITY]
Image = Annotated[str, _IMAGE]
LabelKey = Annotated[str, _matching(r"([a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", "a label's key")]
LabelValue = Annotated[str, _matching(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", "a label's value (63 characters)")]
EnvName = Annotated[str, _matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]
Labels = dict[LabelKey, LabelValue]


def _open_value(env: dict[str, str]) -> dict[str, str]:
    named = [name for name in env if _SECRET_NAME.search(name)]
    if named:
        raise ValueError(
            f"states {', '.join(named)}: its value would stand in the compiled pipeline; put it into a Secret and name "
            "that under platform.secrets"
        )
    return env


_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
PlainEnv = Annotated[dict[EnvName, str], AfterValidator(_open_value)]
