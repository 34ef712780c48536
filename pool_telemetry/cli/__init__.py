"""The program `pool-telemetry`: one module a command, `sources` for whom a command may ask.

Nothing imports this room. The rooms below it compute; a command asks them and prints the answer.
"""

from pool_telemetry.cli.main import CANT_TELL, FAILED, INTERRUPTED, NOT_INSTALLED, USAGE, main

__all__ = ["CANT_TELL", "FAILED", "INTERRUPTED", "NOT_INSTALLED", "USAGE", "main"]
