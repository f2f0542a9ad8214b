"""What the routes of `kfp_api` share: rows by id, who may see them, what is shown of them, lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from support.kfp_rules import DENIED, INVALID, NOT_FOUND, Refusal, page

if TYPE_CHECKING:
    from support.kfp_api import KfpApi, Row


class Request(NamedTuple):
    """What came with the path."""

    query: dict[str, str]
    body: Any
    content_type: str


def find(rows: dict[str, Row], **wanted: str) -> Row | None:
    """Return the row that has all the wanted values."""
    return next((row for row in rows.values() if all(row.get(key) == value for key, value in wanted.items())), None)


def get(rows: dict[str, Row], kind: str, key: str, *outer: str) -> Row:
    """Return a row by id, or refuse with 404."""
    if key not in rows:
        raise Refusal(NOT_FOUND, f"{kind} {key} not found", *outer)
    return rows[key]


def authorize(api: KfpApi, namespace: str, what: str) -> str:
    """Return the namespace if the caller may use it."""
    if not api.multi_user:
        return namespace or "kubeflow"
    if not namespace:
        raise Refusal(INVALID, f"{what} cannot have an empty namespace in multi-user mode")
    if namespace in api.forbidden or namespace not in api.namespaces:
        message = f"User 'understudy' is not authorized with reason:  (request: {what} in namespace {namespace})"
        raise Refusal(DENIED, message, "Failed to authorize with API")
    return namespace


def shown(row: Row, *hidden: str) -> Row:
    """Return what the API shows: no internal fields, nothing empty (`EmitUnpopulated: false`)."""
    return {name: value for name, value in row.items() if name not in hidden and value not in (None, "", False, [], {})}


def scoped(api: KfpApi, rows: dict[str, Row], request: Request, what: str) -> list[Row]:
    if experiment_id := request.query.get("experiment_id"):
        get(api.experiments, "Experiment", experiment_id)
        return [row for row in rows.values() if row["experiment_id"] == experiment_id]
    namespace = authorize(api, request.query.get("namespace", ""), what)
    return [row for row in rows.values() if row["namespace"] == namespace]


def listed(name: str, rows: list[Row], request: Request, key: str, fields: tuple[str, ...], *hidden: str) -> Row:
    chosen, total, token = page(rows, request.query, key, fields)
    result = {name: [shown(row, *hidden) for row in chosen], "total_size": total, "next_page_token": token}
    return shown(result)
