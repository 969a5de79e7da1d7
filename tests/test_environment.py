"""The suite does not depend on the user's environment variables."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from environment import KEPT, OURS, PROXIES, REAL_DATA, SHELLS, TORCHRUNS

ROOT = Path(__file__).resolve().parents[1]
XDG = {"XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
SET = OURS | TORCHRUNS | SHELLS | XDG | PROXIES | {name.upper() for name in PROXIES}
CHEAP = (  # a script, a command with a default from the environment, another engine, a cache
    "tests/test_scripts.py::test_protocols_use_the_fields_folders_and_settings",
    "tests/test_reproduce.py::test_a_subset_limits_the_tests_but_not_the_source",
    "tests/test_data_cli.py::test_a_user_folder_is_verified_too",
)


def test_tests_pass_whatever_the_environment_sets(tmp_path):
    nonsense = {name: str(tmp_path / "nonsense") for name in SET}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp",
                           str(tmp_path / "inner"), *CHEAP], cwd=ROOT, env={**os.environ, **nonsense},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "nonsense").exists()


def test_the_environment_keeps_what_is_not_a_setting_of_ours():
    program = "import environment, json, os; print(json.dumps(dict(os.environ)))"
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "tests"), **dict.fromkeys(KEPT, "1")}
    done = subprocess.run([sys.executable, "-c", program], env={**given, **dict.fromkeys(SET, "x")},
                          capture_output=True, text=True, check=True)
    left = json.loads(done.stdout)
    assert {name: left.get(name) for name in given} == given
    assert not SET & set(left) and left[REAL_DATA] == "x"


def test_every_variable_that_is_read_is_known_here():
    read = set()
    for path in ROOT.glob("scripts/**/*.sh"):
        read |= set(re.findall(r"\$\{([A-Z_]+):?[-=]", path.read_text()))
    files = [ROOT / "train.py", ROOT / "parse_test_res.py",
             *(path for folder in ("p2c", "trainers", "datasets", "scripts") for path in (ROOT / folder).rglob("*.py"))]
    for path in files:
        read |= set(re.findall(r'(?:environ|getenv)[\w.]*[\[(]"(\w+)"', path.read_text(encoding="utf-8")))
    assert {"DATA", "OUTPUT", "CFG", "SEEDS", "SOURCE", "PYTHON", "LOCAL_RANK"} <= read
    assert read <= SET | KEPT
