"""The program `pool-telemetry`: one module a command, `sources` for whom a command may ask.

Nothing imports this room. What a command computes lives below it; here it is asked for and printed.
"""

from pool_telemetry.cli.main import CANT_TELL, FAILED, INTERRUPTED, NOT_INSTALLED, USAGE, main

__all__ = ["CANT_TELL", "FAILED", "INTERRUPTED", "NOT_INSTALLED", "USAGE", "main"]
