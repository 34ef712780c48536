"""The form of an alert: `alerts` builds it, and `rule_files` writes it. Only data belongs here."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "seconds", "number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert: it fires for each series of `value` that stays above `limit`.

    `summary` and `description` may name `{pool}`, `{process}`, `{job}`, `{value}` and `{limit}`.
    `description` may also name `{waiting}` and `{max_size}`, as the pool has them at that moment.

    Attributes:
        value: A PromQL expression.
        unit: Says how `value` and `limit` are written in words.
        pending_for: How long the value stays above the limit before the alert fires.
        panel: The title of the Pool dashboard's panel that shows the value.
    """

    name: str
    severity: Literal["critical", "warning"]
    value: str
    limit: float
    unit: Unit = "number"
    pending_for: str
    summary: str
    description: str
    panel: str
