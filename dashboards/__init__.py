"""The dashboards' source: `make dashboards` writes the files beside it."""
