"""Tests of a group run in one process: fixtures are built once and devices measured one at a time."""

import os

import pytest


def test_grouped_tests_run_in_one_process(request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process runs all tests; `make test` starts two")
    assert all("@" in item.nodeid for item in request.session.items)
