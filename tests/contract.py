"""For the contract tests: what code written against Dassl relies on, on this package's engine and on real Dassl.

Each test runs on both, on real Dassl where it can be imported. A test that real Dassl fails by its own fault says which
fault that is; the numbers are those of Dassl's known faults on current torch (F) and on any version (G). What only this
package's engine promises is in test_engine_*.py.
"""
import pytest
from engine_fixtures import *  # noqa: F403 (its fixtures, except for the engine's)
from engine_fixtures import tiny_engine

from p2c.compat import EngineError


def available(name):
    """An engine with the tiny data and trainer; where real Dassl cannot be imported the test is skipped."""
    try:
        return tiny_engine(name)
    except EngineError as error:
        pytest.skip(f"real Dassl cannot be imported: {error.__cause__}")


@pytest.fixture(scope="session", params=["p2c", "dassl"])
def engine(request):
    return available(request.param)


def dassl_fails(fault: str, raises, when: bool = True):
    """Mark a test that real Dassl fails, in this way, because of a fault of its own."""
    mark = pytest.mark.xfail(when, reason=fault, raises=raises, strict=True)
    return pytest.mark.parametrize("engine", ["p2c", pytest.param("dassl", marks=mark)], indirect=True)
