"""Which process runs a test: with the groups lost, set-ups are made twice and devices measured side by side."""

import os

import pytest


def test_tests_that_belong_together_run_in_one_process(request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process runs all tests; `make test` starts two")
    assert all("@" in item.nodeid for item in request.session.items)
