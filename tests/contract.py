"""For the contract tests: what code written against Dassl relies on, on this package's engine and on real Dassl.

Each test runs on both, on real Dassl where it can be imported. A test that real Dassl fails by its own fault says which
fault that is; the numbers are those of Dassl's known faults on current torch (F) and on any version (G). What only this
package's engine promises is in test_engine_*.py.

pytest loads this file as a plugin (see conftest.py).
"""
import pytest
from engine_fixtures import tiny_engine

from p2c.compat import EngineError


def available(name):
    """An engine with the tiny data and trainer; where real Dassl cannot be imported the test is skipped."""
    try:
        return tiny_engine(name)
    except EngineError as error:
        pytest.skip(f"real Dassl cannot be imported: {error.__cause__}")


def pytest_generate_tests(metafunc):
    """In the contract tests `engine` is each of the two."""
    if "engine" in metafunc.fixturenames and metafunc.module.__name__.startswith("test_contract"):
        fault = metafunc.definition.get_closest_marker("dassl_fails")
        engines = ["p2c", pytest.param("dassl", marks=fault.args if fault else ())]
        metafunc.parametrize("engine", engines, indirect=True, scope="session")


@pytest.fixture(scope="session")
def engine(request):
    """This package's engine, or the one that a contract test runs on."""
    return available(getattr(request, "param", "p2c"))


def dassl_fails(fault: str, raises, when: bool = True):
    """Mark a test that real Dassl fails, in this way, because of a fault of its own."""
    return pytest.mark.dassl_fails(pytest.mark.xfail(when, reason=fault, raises=raises, strict=True))
