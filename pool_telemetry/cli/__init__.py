"""The program `pool-telemetry`: one module for each command, `sources` for the addresses it asks.

No other room imports this room. A command asks the rooms below it and prints their answer.
"""

from pool_telemetry.cli.main import CANT_TELL, FAILED, INTERRUPTED, NOT_INSTALLED, USAGE, main

__all__ = ["CANT_TELL", "FAILED", "INTERRUPTED", "NOT_INSTALLED", "USAGE", "main"]
