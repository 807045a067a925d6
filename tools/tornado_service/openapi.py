"""OpenAPI 3.1 out of the routes' declarations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http.client import responses
from typing import Any

import msgspec

from tools.tornado_service.errors import ErrorBody
from tools.tornado_service.params import parameters

ALWAYS = (400, 413, 414)
FAILURES = (*ALWAYS, 401, 403, 404, 409, 429, 502, 503, 504)
"""Every outcome of an operation behind a permission that is no success; 500 is none, it is a defect."""
_GROUP = re.compile(r"\(\?P<(\w+)>[^)]*\)")
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
_REF = "#/components/schemas/{name}"


def document(
    title: str, version: str, routes: Sequence[tuple[Any, ...]], security: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The contract of the routes: what each takes, answers and may fail with.

    Args:
        security: OpenAPI's security scheme of what is behind a permission, by its name.
    """
    security = security or {}
    operations = list(_operations(routes))
    types = [ErrorBody] + [op.answer for _, _, _, op in operations] + [op.body for *_, op in operations if op.body]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    answers = schemas[1 : 1 + len(operations)]
    bodies = iter(schemas[1 + len(operations) :])
    paths: dict[str, dict[str, Any]] = {}
    for (path, method, handler, op), answer in zip(operations, answers, strict=True):
        names = re.findall(r"{(\w+)}", path)
        entry: dict[str, Any] = {
            "summary": (handler.__doc__ or "").strip().split("\n")[0],
            "operationId": f"{method}_{handler.__name__}_{len(paths)}",
            "parameters": parameters(op.query, names),
            "responses": {
                str(op.status): {
                    "description": responses[op.status],
                    "content": {op.content: {"schema": answer}} | {kind: {"schema": _FILE} for kind in op.files},
                },
                **{
                    str(status): {"description": responses[status]} | _carried(op, status, answer, schemas[0])
                    for status in (*op.also, *(FAILURES if op.needs is not None else ALWAYS))
                },
            },
        }
        if op.needs is not None:
            entry["security"] = [{name: []} for name in security]
        if op.raw_body:
            entry["requestBody"] = {"required": True, "content": {"*/*": {"schema": _FILE}}}
        if op.form is not None:
            fields = {one["name"]: one["schema"] for one in parameters(op.form, ())}
            needed = [one["name"] for one in parameters(op.form, ()) if one["required"]]
            shape = {"type": "object", "properties": fields, "required": needed, "additionalProperties": False}
            sent = {"application/x-www-form-urlencoded": {"schema": shape}}
            entry["requestBody"] = {"required": bool(needed), "content": sent}
        if op.body is not None:
            entry["requestBody"] = {"required": True, "content": {"application/json": {"schema": next(bodies)}}}
        paths.setdefault(path, {})[method] = entry
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": security},
    }


def _carried(op: Any, status: int, answer: dict[str, Any], failure: dict[str, Any]) -> dict[str, Any]:
    """What another status of an operation carries: its answer where that is declared, the error of a failure."""
    if 300 <= status < 400:
        return {}
    refused = {"application/json": {"schema": failure}} if status >= 400 else {}
    return {"content": refused | ({op.content: {"schema": answer}} if status in op.also else {})}


def _operations(routes: Sequence[tuple[Any, ...]]) -> Any:
    for pattern, handler, *_ in routes:
        path = _GROUP.sub(lambda match: "{" + match[1] + "}", pattern).replace("\\", "")
        for method in ("get", "post", "put", "patch", "delete"):
            declared = getattr(getattr(handler, method, None), "operation", None)
            if declared is not None:
                yield path, method, handler, declared
