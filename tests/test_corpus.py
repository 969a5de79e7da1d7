"""A sample of the corpus of bad inputs (tests/faults/corpus.py), all malicious ones in it."""
import os
from pathlib import Path

import pytest
from faults import corpus

SAMPLE = [case for number, case in enumerate(corpus.CASES)
          if not case.process and (number % 4 == 0 or "malicious" in case.name)]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    return corpus.Sandbox(Path(os.path.realpath(tmp_path_factory.mktemp("corpus"))))


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_a_bad_input_gets_one_line_and_changes_nothing(sandbox, case):
    assert sandbox.faults(case) == []


def test_an_error_of_several_lines_a_traceback_or_one_without_a_remedy_is_a_fault():
    def faults(err):
        return list(corpus.faults_of_answer(corpus.Answer(2, "", err), "", ["x.yaml", "correct"]))

    assert faults("error: x.yaml is damaged; correct it\n") == []
    assert faults("error: x.yaml is damaged\n") and faults("") and faults("error: x.yaml; correct it\nerror: more\n")
    assert faults("Traceback (most recent call last):\nValueError: x.yaml; correct it\n") == ["a traceback"]


@pytest.mark.parametrize("harm, fault", [
    (lambda here: (here.parent / corpus.CANARY).touch(), "changed outside its folder: canary"),
    (lambda here: (here / "mine").write_text("other"), "changed: here/mine"),
    (lambda here: (here / "mine").unlink(), "changed: here/mine"),
    (lambda here: (here.parent / "home" / "cache").touch(), "changed outside its folder: home/cache"),
], ids=["canary", "overwritten", "deleted", "home"])
def test_harm_is_seen(sandbox, monkeypatch, harm, fault):
    case = corpus.Case("kind", "name", ("harm",), "", "", corpus.put("mine", "mine"))
    monkeypatch.setitem(corpus.COMMANDS, "harm", (lambda argv: harm(sandbox.here) or 2, ()))
    assert fault in sandbox.faults(case)
    (sandbox.folder / corpus.CANARY).unlink(missing_ok=True)
