"""Run folders as the aggregator reads them: logs, results.json; and its command."""

import json
from pathlib import Path

import pytest

import parse_test_res

NEW_BLOCK = "=> result\n* total: 3,669\n* correct: 9\n* accuracy: {:.1f}%\n* error: {:.1f}%\n* macro_f1: {:.1f}%\n"
OLD_BLOCK = "=> result\n* total: 3669\n* correct: 9\n* accuracy: {:.2f}%\n* error: {:.2f}%\n* macro_f1: {:.2f}%\n"
PROGRESS = "epoch [5/5] batch [20/148] time 0.1 (0.1) loss 1.0 (1.1) acc 33.3 (40.0) lr 1.0e-05 eta 0:01:02\n"
VALIDATION = "Evaluate on the *val* set\n" + NEW_BLOCK.format(11, 89, 11)


def log_text(accuracy: float, end: str = "Finish training", block: str = NEW_BLOCK) -> str:
    """A training run's log, with a validation block before the end of training that must not count."""
    result = block.format(accuracy, 100 - accuracy, accuracy - 1)
    deployed = "Deploy the last-epoch model\nEvaluate on the *test* set\n"
    return f"** Config **\n{PROGRESS}{VALIDATION}{end}\n{deployed}{result}Elapsed: 0:03:21\n"


def write_log(folder: Path, text: str, name: str = "log.txt") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def write_results(
    folder: Path, accuracy: float, finished: bool = True, config: dict | None = None, **metrics: float
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results = {"format": "p2c-results", "version": 1, "finished": finished, "mode": "train", "config": config or {}}
    if finished:
        results["metrics"] = {"accuracy": accuracy, "error_rate": 100 - accuracy, "macro_f1": accuracy - 1, **metrics}
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def parse(capsys):
    """Run the command; returns its exit status, standard output and standard error."""

    def run(*arguments) -> tuple[int, str, str]:
        status = parse_test_res.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run
