"""A skip is a failure here: what these tests need, a compiler and NVRTC, is installed wherever they run."""

from __future__ import annotations

from collections.abc import Generator

import pytest


def as_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Also of a test that is expected to fail, whichever way it went."""
    if report.outcome == "skipped" or hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
        vars(report).pop("wasxfail", None)
        report.outcome, report.longrepr = (
            "failed",
            f"tests of kernels are neither skipped nor expected to fail: {reason}",
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    as_failure(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    as_failure(report)
    return report
