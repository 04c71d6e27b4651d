"""Tests of a group run in one process; otherwise set-ups are made twice and devices measured at the same time."""

import os

import pytest


def test_tests_that_belong_together_run_in_one_process(request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process runs all tests; `make test` starts two")
    assert all("@" in item.nodeid for item in request.session.items)
