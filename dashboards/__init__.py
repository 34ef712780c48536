"""The source of the dashboards: `make dashboards` writes the files beside it."""
