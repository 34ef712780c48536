"""PyMongo's own tests with our telemetry in every client: `make test-driver`.

`__main__` fetches the tests of the installed version and runs them, `plugin` is loaded into each
pytest that runs them, and `books` compares our counts with the driver's own after each test.
"""
