"""Writes everything here that is made: `make dashboards`. A test does it again and compares."""

import json
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.fleet import fleet
from dashboards.pool import pool
from pool_telemetry.alerts import Thresholds
from pool_telemetry.artifacts import LAYOUT, rules

HERE: Final = Path(__file__).parent


def dashboards(limits: Thresholds) -> dict[str, str]:
    """Return the dashboards' files, by name."""
    made = {"pool.json": pool(limits), "fleet.json": fleet(limits)}
    return {
        name: json.dumps(board, cls=JSONEncoder, **LAYOUT) + "\n" for name, board in made.items()
    }


def main() -> None:
    """Write the dashboards first: the alerts lead to their panels."""
    for name, text in dashboards(Thresholds()).items():
        (HERE / name).write_text(text)
    for name, text in rules().items():
        (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
