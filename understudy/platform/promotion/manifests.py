"""The two kinds of manifest that promotion changes, edited line by line so that nothing else in them moves.

`champion.yaml` of an environment names the served content; a schedule pins the version of the pipeline that retrains.
"""

from __future__ import annotations

import json
import re

from understudy.errors import ConfigError

ZERO_SHA256 = "0" * 64
_LINES = {
    "uri": r"([ \t]+storageUri:[ \t]*)(\S.*?)",
    "model": r"([ \t]+understudy\.dev/model:[ \t]*)(\S.*?)",
    "version": r"([ \t]+understudy\.dev/version:[ \t]*)(\S.*?)",
    "stop": r"([ \t]+serving\.kserve\.io/stop:[ \t]*)(\S.*?)",
}
_PIPELINE_VERSION = re.compile(r"(?m)^(pipeline_version:[ \t]*)([^\s#]+)(?=[ \t\r]*(?:#.*)?$)")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/:-]*")
_WORDS_OF_YAML = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def read_champion(text: str, where: str) -> dict[str, str]:
    """Return what a champion.yaml serves: uri, model, version, stop.

    Raises:
        ConfigError: a field is missing or repeated.
    """
    import yaml

    return {field: str(yaml.load(_match(field, text, where).group(2), yaml.BaseLoader)) for field in _LINES}


def write_champion(text: str, serving: dict[str, str], where: str) -> str:
    """Return the manifest with other values in the same lines."""
    for field in _LINES:
        plain = _PLAIN.fullmatch(serving[field]) and serving[field].lower() not in _WORDS_OF_YAML
        value = serving[field] if plain else json.dumps(serving[field], ensure_ascii=False)
        found = _match(field, text, where)
        text = text[: found.start(2)] + value + text[found.end(2) :]
    return text


def serving_of(model: str, version: str, uri: str) -> dict[str, str]:
    """Return what a champion.yaml says of a version that is to be served."""
    return {"uri": uri, "model": model, "version": version, "stop": "false"}


def read_pin(text: str) -> str | None:
    """Return the pipeline version that a schedule pins, None where it pins none."""
    found = _PIPELINE_VERSION.search(text)
    return found.group(2).strip("\"'") if found else None


def write_pin(text: str, version: str) -> str:
    """Return the schedule with another pipeline version, its quotation marks kept."""

    def changed(found: re.Match[str]) -> str:
        quote = found.group(2)[0] if found.group(2)[0] in "\"'" else ""
        return f"{found.group(1)}{quote}{version}{quote}"

    return _PIPELINE_VERSION.sub(changed, text, count=1)


def _match(field: str, text: str, where: str) -> re.Match[str]:
    found = list(re.finditer("(?m)^" + _LINES[field] + r"[ \t\r]*$", text))
    if len(found) != 1:
        raise ConfigError(
            f"{where} has {len(found)} lines for {field}, expected one. Compare it with k8s/apps/staging/champion.yaml."
        )
    return found[0]
