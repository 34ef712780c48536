"""The version of this library. The build reads it here."""

__version__ = "0.2.0"
