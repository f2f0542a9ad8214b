"""Types of what Kubernetes checks in manifests, so that a typo is refused here and in words."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator


def _matching(pattern: str, what: str) -> AfterValidator:
    """Refuse text that does not match, in words."""
    compiled = re.compile(pattern, re.ASCII)  # digits and letters of other scripts are neither to Kubernetes

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"is not {what}")
        return text

    return AfterValidator(check)


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


INT32_MAX = 2**31 - 1  # what Kubernetes and KFP hold counts and deadlines in
# Zero is left out: as a limit it means none.
_QUANTITY = _matching(r"(?=.*[1-9])\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?", "a quantity such as 500m, 16 or 512Gi")
_IMAGE = _matching(
    r"[a-z0-9][\w.:-]*(/[\w.-]+)*/[\w.-]*python[\w.-]*(:[\w.-]+|@sha256:[0-9a-f]{64})",
    "an image name with a tag or digest and with 'python' in its name, as KFP wants it",
)
_PART = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
Name = Annotated[
    str, _matching(rf"(?=.{{1,253}}$){_PART}(\.{_PART})*", "a name as Kubernetes has it: lower case, -, .")
]
Label = Annotated[
    str,
    _matching(rf"(?=.{{1,63}}$){_PART}", "a name as Kubernetes has it for this: lower case, -, at most 63 characters"),
]
ResourceName = Annotated[
    str,
    _matching(
        rf"(?=.{{1,253}}/){_PART}(\.{_PART})*/[A-Za-z0-9]([-\w.]{{0,61}}[A-Za-z0-9])?",
        "a resource such as nvidia.com/gpu",
    ),
]
Quantity = Annotated[str, BeforeValidator(_as_text), _QUANTITY]
Image = Annotated[str, _IMAGE]
LabelKey = Annotated[str, _matching(r"([a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", "a label's key")]
LabelValue = Annotated[str, _matching(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", "a label's value (63 characters)")]
EnvName = Annotated[str, _matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]
Labels = dict[LabelKey, LabelValue]
_RESERVED_LABEL = re.compile(
    r"(kueue\.x-k8s\.io|pipelines\.kubeflow\.org|(workflows\.)?argoproj\.io|trainer\.kubeflow\.org|jobset\.sigs\.k8s\.io)/.*"
    r"|app\.kubernetes\.io/(name|component|part-of|managed-by)|understudy\.dev/step"
)
# What the compiler and the launcher state themselves.
_RESERVED_VARIABLES = {"UNDERSTUDY_IMAGE_DIGEST", "UNDERSTUDY_LAUNCH", "UNDERSTUDY_RUN_ID", "UNDERSTUDY_WORKDIR"}
_RESERVED_VARIABLES |= {"UNDERSTUDY_WORKER", "PATH", "HOME", "LD_PRELOAD", "PYTHONPATH"}


def _not_reserved(labels: dict[str, str]) -> dict[str, str]:
    reserved = sorted(key for key in labels if _RESERVED_LABEL.fullmatch(key))
    if reserved:
        raise ValueError(
            f"states {', '.join(reserved)}, which queues, policies or controllers go by; use another key, such as "
            "understudy.dev/…"
        )
    return labels


UserLabels = Annotated[Labels, AfterValidator(_not_reserved)]


def _open_value(env: dict[str, str]) -> dict[str, str]:
    ours = sorted(_RESERVED_VARIABLES & set(env))
    if ours:
        raise ValueError(f"states {', '.join(ours)}, which each pod is given; remove it")
    named = [name for name in env if _SECRET_NAME.search(name)]
    if named:
        raise ValueError(
            f"states {', '.join(named)}: its value would stand in the compiled pipeline; put it into a Secret and name "
            "that under platform.secrets"
        )
    return env


_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
PlainEnv = Annotated[dict[EnvName, str], AfterValidator(_open_value)]
