"""parse_test_res.py: CoOp's report to the character, results.json before logs, and the base-to-novel table."""

import csv
import io
import json
import math
import re
from pathlib import Path

import pytest
from run_folders import NEW_BLOCK, OLD_BLOCK, PROGRESS, VALIDATION, log_text, write_log, write_results

import parse_test_res
from p2c.tables.cells import harmonic_mean


@pytest.fixture
def three_logs(tmp_path: Path) -> Path:
    for seed, accuracy in enumerate((81, 82, 83), start=1):
        write_log(tmp_path / f"seed{seed}", log_text(accuracy))
    return tmp_path


# CoOp's report


def test_three_logs_give_coops_output_to_the_character(three_logs, parse):
    assert parse(three_logs) == (0, (
        f"Parsing files in {three_logs}\n"
        f"file: {three_logs}/seed1/log.txt. accuracy: 81.00%. \n"
        f"file: {three_logs}/seed2/log.txt. accuracy: 82.00%. \n"
        f"file: {three_logs}/seed3/log.txt. accuracy: 83.00%. \n"
        "===\n"
        f"Summary of directory: {three_logs}\n"
        "* accuracy: 82.00% +- 0.82%\n"
        "===\n"
    ), "")  # fmt: skip


def test_the_directory_is_printed_as_it_was_given(three_logs, parse, monkeypatch):
    monkeypatch.chdir(three_logs.parent)
    _, out, _ = parse(f"./{three_logs.name}/")
    assert f"Parsing files in ./{three_logs.name}/\nfile: ./{three_logs.name}/seed1/log.txt. " in out


def test_ci95_is_printed_instead_of_the_standard_deviation(three_logs, parse):
    assert "* accuracy: 82.00% +- 0.92%\n" in parse(three_logs, "--ci95")[1]


def test_one_run_has_no_spread(tmp_path, parse):
    write_log(tmp_path / "seed1", log_text(81))
    assert "* accuracy: 81.00% +- 0.00%\n" in parse(tmp_path)[1]


@pytest.mark.parametrize("keyword, line", [("macro_f1", "81.00% +- 0.82%"), ("error", "18.00% +- 0.82%")])
def test_keyword_chooses_the_value(three_logs, parse, keyword, line):
    status, out, _ = parse(three_logs, "--keyword", keyword)
    assert status == 0 and f"* {keyword}: {line}\n" in out and f"log.txt. {keyword}: " in out


def test_the_per_class_average_is_read(tmp_path, parse):
    per_class = "=> per-class result\n* class: 0 (cat)\ttotal: 2\tcorrect: 1\tacc: 50.0%\n* average: 72.2%\n"
    write_log(tmp_path / "seed1", log_text(81) + per_class)
    assert "* average: 72.20% +- 0.00%\n" in parse(tmp_path, "--keyword", "average")[1]


def test_a_keyword_goes_into_the_pattern_unescaped(three_logs, parse):
    assert "* (acc|hit).*y: 82.00% +- 0.82%\n" in parse(three_logs, "--keyword", "(acc|hit).*y")[1]


def test_several_experiments_end_with_the_mean_of_their_means(tmp_path, parse):
    write_log(tmp_path / "b" / "seed1", log_text(90))
    for seed, accuracy in enumerate((81, 82, 83), start=1):
        write_log(tmp_path / "a" / f"seed{seed}", log_text(accuracy))
    status, out, _ = parse(tmp_path, "--multi-exp")
    assert status == 0
    assert out.endswith("===\nAverage performance\n* accuracy: 86.00%\n")
    assert out.index(f"Summary of directory: {tmp_path}/a\n") < out.index(f"Parsing files in {tmp_path}/b\n")


def test_evaluation_only_logs_need_test_log(tmp_path, parse):
    write_log(tmp_path / "seed1", "Evaluate on the *test* set\n" + NEW_BLOCK.format(77, 23, 76))
    status, out, err = parse(tmp_path)
    assert status == 1 and f"Nothing found in {tmp_path}" in err and "--test-log" in err
    assert "* accuracy: 77.00% +- 0.00%\n" in parse(tmp_path, "--test-log")[1]


def test_with_test_log_the_last_block_wins(tmp_path, parse):
    write_log(tmp_path / "seed1", log_text(81))
    assert "* accuracy: 81.00% +- 0.00%\n" in parse(tmp_path, "--test-log")[1]


@pytest.mark.parametrize("end", ["Finish training", "Finished training"])
@pytest.mark.parametrize("block, expected", [(NEW_BLOCK, "92.70"), (OLD_BLOCK, "92.66")])
def test_logs_of_all_dassl_versions_are_read(tmp_path, parse, end, block, expected):
    write_log(tmp_path / "seed1", log_text(92.66, end, block))
    assert f"* accuracy: {expected}% +- 0.00%\n" in parse(tmp_path)[1]


def test_a_value_that_is_no_number_does_not_count(tmp_path, parse):
    write_log(tmp_path / "seed1", log_text(math.nan))
    write_log(tmp_path / "seed2", log_text(80) + "* accuracy: 1.2.3%\n")
    _, out, _ = parse(tmp_path)
    assert "* accuracy: 80.00% +- 0.00%\n" in out and f"not counted: {tmp_path}/seed1: finished, but" in out


# Runs that do not count, and errors


def test_an_unfinished_run_is_named_and_left_out(three_logs, parse):
    write_log(three_logs / "seed3", PROGRESS + VALIDATION)
    status, out, _ = parse(three_logs)
    assert status == 0
    assert f"not counted: {three_logs}/seed3: not finished" in out
    assert "2 of 3 runs counted\n===\n" in out
    assert "* accuracy: 81.50% +- 0.50%\n" in out
    assert parse(three_logs, "--strict")[0] == 1


def test_stray_files_and_folders_without_a_log_do_not_abort(three_logs, parse):
    (three_logs / "notes.txt").write_text("stray")
    (three_logs / ".cache").mkdir()
    (three_logs / "seed4").mkdir()
    status, out, _ = parse(three_logs)
    assert status == 0 and "* accuracy: 82.00% +- 0.82%\n" in out
    assert f"not counted: {three_logs}/seed4: no log.txt" in out
    assert "notes.txt" not in out and ".cache" not in out


def test_a_resumed_run_is_read_from_its_newest_log_with_a_result(tmp_path, parse):
    write_log(tmp_path / "seed1", PROGRESS)
    write_log(tmp_path / "seed1", log_text(70), "log.txt-2026-01-30-09-05-00")
    write_log(tmp_path / "seed1", log_text(75), "log.txt-2026-01-31-09-05-00")
    write_log(tmp_path / "seed1", PROGRESS, "log.txt-2026-02-01-09-05-00")
    write_log(tmp_path / "seed1", log_text(10), "log.txt.bak")
    assert f"file: {tmp_path}/seed1/log.txt-2026-01-31-09-05-00. accuracy: 75.00%. \n" in parse(tmp_path)[1]


def test_a_run_started_twice_in_a_second_is_read_from_the_later_log(tmp_path, parse):
    date = "-2026-01-30-09-05-00"
    write_log(tmp_path / "seed1", log_text(70), f"log.txt{date}")
    write_log(tmp_path / "seed1", log_text(75), f"log.txt{date}{date}")
    assert f"file: {tmp_path}/seed1/log.txt{date}{date}. accuracy: 75.00%. \n" in parse(tmp_path)[1]


def test_experiments_without_results_are_named(tmp_path, parse):
    write_log(tmp_path / "a" / "seed1", log_text(90))
    (tmp_path / "b" / "seed1").mkdir(parents=True)
    status, out, _ = parse(tmp_path, "--multi-exp")
    assert status == 0 and f"Nothing found in {tmp_path}/b\n1 of 2 experiments counted\nAverage performance\n" in out


@pytest.mark.parametrize("arguments", [(), ("--multi-exp",), ("--base2new",), ("--keyword", "f2")])
def test_nothing_found_is_one_message_and_status_1(tmp_path, parse, arguments):
    (tmp_path / "seed1").mkdir()
    status, _, err = parse(tmp_path, *arguments)
    assert status == 1 and err.startswith(f"Nothing found in {tmp_path}") and err.count("\n") == 1


def test_a_runs_own_folder_is_recognised(tmp_path, parse):
    write_log(tmp_path, log_text(80))
    assert "above" in parse(tmp_path)[2]


@pytest.mark.parametrize("arguments", [(), ("--base2new",)])
def test_a_missing_directory_is_one_message_and_status_1(tmp_path, parse, arguments):
    error = f"No such directory: {tmp_path}/absent; give a folder that holds runs\n"
    assert parse(tmp_path / "absent", *arguments) == (1, "", error)


@pytest.mark.parametrize(
    "arguments",
    [(), ("a", "b"), ("a", "--format", "csv"), ("a", "--base2new", "--multi-exp"), ("a", "--base2new", "--test-log"),
     ("a", "--base2new", "--format", "html"), ("a", "--keyword", "(")],
)  # fmt: skip
def test_arguments_that_do_not_go_together_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        parse_test_res.main(list(arguments))
    assert exited.value.code == 2 and "error: " in capsys.readouterr().err


def test_help_works(capsys):
    with pytest.raises(SystemExit) as exited:
        parse_test_res.main(["--help"])
    assert exited.value.code == 0 and "95% confidence" in capsys.readouterr().out


# results.json


def test_results_are_preferred_and_their_mean_is_not_rounded(tmp_path, parse):
    for seed, accuracy in enumerate((81.369, 81.351), start=1):
        write_log(tmp_path / f"seed{seed}", log_text(81.4))
        write_results(tmp_path / f"seed{seed}", accuracy)
    _, out, _ = parse(tmp_path)
    assert f"file: {tmp_path}/seed1/results.json. accuracy: 81.37%. \n" in out
    assert "* accuracy: 81.36% +- 0.01%\n" in out


def test_an_unfinished_results_file_overrules_an_older_log(tmp_path, parse):
    write_results(tmp_path / "seed1", 80)
    write_log(tmp_path / "seed2", log_text(70))
    write_results(tmp_path / "seed2", 0, finished=False)
    _, out, _ = parse(tmp_path)
    assert f"not counted: {tmp_path}/seed2: not finished (results.json)\n" in out and "80.00% +- 0.00%" in out


@pytest.mark.parametrize(
    "keyword, expected", [("accuracy", 80), ("error", 20), ("macro_f1", 79), ("average", 78), ("error_rate", 20)]
)
def test_keywords_name_the_same_metrics_as_in_logs(tmp_path, parse, keyword, expected):
    write_results(tmp_path / "seed1", 80, perclass_accuracy=78)
    assert f"* {keyword}: {expected:.2f}% +- 0.00%\n" in parse(tmp_path, "--keyword", keyword)[1]


@pytest.mark.parametrize("text", ["{", "[1]", '{"accuracy": 10}'])
def test_a_results_file_that_is_not_ours_leaves_the_log(tmp_path, parse, text):
    write_log(tmp_path / "seed1", log_text(81))
    (tmp_path / "seed1" / "results.json").write_text(text)
    assert f"file: {tmp_path}/seed1/log.txt. accuracy: 81.00%. \n" in parse(tmp_path)[1]


def test_a_results_file_that_cannot_be_read_is_no_missing_one(tmp_path, parse):
    for seed, text in enumerate(("{", '{"format": "other"}'), start=1):
        (tmp_path / f"seed{seed}").mkdir()
        (tmp_path / f"seed{seed}" / "results.json").write_text(text)
    _, out, _ = parse(tmp_path)
    assert "no results.json" not in out
    assert all(re.search(f"seed{seed}: .*results.json is damaged", out) for seed in (1, 2))


def test_a_metric_that_results_lack_is_named(tmp_path, parse):
    write_results(tmp_path / "seed1", 80)
    assert re.search("not counted: .*seed1: no nll in its results.json", parse(tmp_path, "--keyword", "nll")[1])


def test_a_metric_has_its_own_unit(tmp_path, parse):
    for seed, nll in enumerate((0.5, 0.6), start=1):
        write_results(tmp_path / f"seed{seed}", 80, nll=nll)
    out = parse(tmp_path, "--keyword", "nll")[1]
    assert "* nll: 0.550 nats +- 0.050 nats\n" in out and "%" not in out


@pytest.mark.parametrize("settings, record, named", [
    ({"DATASET": {"NAME": "EuroSAT", "SUBSAMPLE_CLASSES": "base"}}, {}, "DATASET.NAME"),
    ({"DATASET": {"NAME": "DTD", "SUBSAMPLE_CLASSES": "new"}}, {}, "DATASET.SUBSAMPLE_CLASSES"),
    ({}, {"mode": "eval"}, "mode"), ({}, {"split": "val"}, "split"),
])
def test_an_average_over_unlike_runs_says_so(tmp_path, parse, settings, record, named):
    like = {"DATASET": {"NAME": "DTD", "SUBSAMPLE_CLASSES": "base"}}
    for seed in (1, 2, 3):
        write_results(tmp_path / f"seed{seed}", 80, config={"SEED": seed, "OUTPUT_DIR": f"seed{seed}", **like})
        path = tmp_path / f"seed{seed}" / "results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"split": "test"}))
    assert "warning" not in parse(tmp_path)[1] and parse(tmp_path, "--strict")[0] == 0
    path.write_text(json.dumps(json.loads(path.read_text()) | record | {"config": like | settings}))
    status, out, _ = parse(tmp_path)
    assert status == 0 and re.search(f"\nwarning: .*differ in {named}\n", out) and "* accuracy: 80.00%" in out
    assert parse(tmp_path, "--strict")[0] == 1


def test_a_metric_that_is_not_a_number_does_not_count(tmp_path, parse):
    write_results(tmp_path / "seed1", 80)
    write_results(tmp_path / "seed2", math.nan)
    assert f"not counted: {tmp_path}/seed2: accuracy is nan\n" in parse(tmp_path)[1]


# The base-to-novel table. Datasets of no family (birds, plants) are expected where another trainer has them


def run_folder(root: Path, half: str, dataset: str, seed: int, trainer: str = "P2C") -> Path:
    return root / half / dataset / "shots_16" / trainer / "tiny_shapes" / f"seed{seed}"


def write_pair(root: Path, dataset: str, seed: int, base: float, novel: float, trainer: str = "P2C") -> None:
    write_results(run_folder(root, "train_base", dataset, seed, trainer), base)
    write_results(run_folder(root, "test_new", dataset, seed, trainer), novel)


def table(out: str) -> dict[tuple[str, str], dict[str, float]]:
    """The CSV's rows: (trainer, dataset) -> column -> number."""
    names = ("base", "base_std", "novel", "novel_std", "hm", "hm_std")
    return {
        (row["trainer"], row["dataset"]): {name: float(row[name]) for name in names if row[name]}
        for row in csv.DictReader(io.StringIO(out))
    }


def test_means_spreads_and_harmonic_means_follow_the_field(tmp_path, parse):
    write_pair(tmp_path, "birds", 1, 80, 60)
    write_pair(tmp_path, "birds", 2, 84, 70)
    write_pair(tmp_path, "plants", 1, 90.5, 50)
    write_pair(tmp_path, "plants", 2, 91.5, 40)
    status, out, err = parse(tmp_path, "--base2new", "--format", "csv")
    rows = table(out)

    def hm(base, novel):
        return 2 * base * novel / (base + novel)

    assert (status, err) == (0, "")
    assert list(rows) == [("P2C", "birds"), ("P2C", "plants"), ("P2C", "average")]
    birds, average = rows["P2C", "birds"], rows["P2C", "average"]
    assert birds == pytest.approx({
        "base": 82, "base_std": 2, "novel": 65, "novel_std": 5,
        "hm": hm(82, 65), "hm_std": (hm(84, 70) - hm(80, 60)) / 2,
    })  # fmt: skip
    assert average == pytest.approx({
        "base": 86.5, "base_std": 1.25, "novel": 55, "novel_std": 0,
        "hm": hm(86.5, 55), "hm_std": (hm(87.75, 55) - hm(85.25, 55)) / 2,
    })  # fmt: skip
    assert "16,plants,91.0,0.5,45.0,5.0," in out and out.splitlines()[1].endswith(",1 2")


@pytest.mark.parametrize(
    "style, line",
    [
        ("text", "plants     90.00 ± 1.00  50.00 ± 0.00  64.29 ± 0.26  1, 2\n"),
        ("markdown", "| plants    | 90.00 ± 1.00 | 50.00 ± 0.00 | 64.29 ± 0.26 | 1, 2    |\n"),
    ],
    ids=["text", "markdown"],
)
def test_the_table_is_printed_in_each_format(tmp_path, parse, style, line):
    write_pair(tmp_path, "plants", 1, 89, 50)
    write_pair(tmp_path, "plants", 2, 91, 50)
    status, out, _ = parse(tmp_path, "--base2new", "--format", style)
    assert status == 0 and "P2C, tiny_shapes, 16 shots" in out
    assert line in out and line.replace("plants ", "average") in out


def test_coop_style_logs_make_the_same_table(tmp_path, parse):
    write_log(run_folder(tmp_path, "train_base", "dtd", 1), log_text(80, "Finished training"))
    write_log(run_folder(tmp_path, "test_new", "dtd", 1), "Evaluate on the *test* set\n" + NEW_BLOCK.format(60, 40, 60))
    rows = table(parse(tmp_path, "--base2new", "--format", "csv")[1])
    assert rows["P2C", "dtd"]["base"] == 80 and rows["P2C", "dtd"]["novel"] == 60


def test_zero_shot_takes_its_base_from_test_base(tmp_path, parse):
    for half, accuracy in (("test_base", 62), ("test_new", 48)):
        write_results(run_folder(tmp_path, half, "shapes", 1, "ZeroshotCLIP"), accuracy)
    write_pair(tmp_path, "shapes", 1, 90, 69)
    write_results(run_folder(tmp_path, "test_base", "shapes", 1), 10)
    rows = table(parse(tmp_path, "--base2new", "--format", "csv")[1])
    assert rows["ZeroshotCLIP", "shapes"]["base"] == 62
    assert rows["P2C", "shapes"]["base"] == 90


def test_several_trainers_end_with_a_summary(tmp_path, parse):
    write_pair(tmp_path, "shapes", 1, 90, 70)
    write_pair(tmp_path / "other", "shapes", 1, 88, 66, trainer="MaPLe")
    _, out, _ = parse(tmp_path, tmp_path / "other", "--base2new")
    summary = out[out.index("Averages over datasets") :]
    assert [line.split()[:4] for line in summary.splitlines()[3:5]] == [
        ["MaPLe", "tiny_shapes", "16", "1"], ["P2C", "tiny_shapes", "16", "1"],
    ]  # fmt: skip
    assert "Averages over datasets" not in parse(tmp_path, "--base2new")[1]


def test_a_row_uses_the_seeds_of_both_halves_and_says_so(tmp_path, parse):
    write_pair(tmp_path, "shapes", 1, 90, 70)
    write_pair(tmp_path, "shapes", 10, 92, 72)
    write_results(run_folder(tmp_path, "train_base", "shapes", 2), 10)
    write_results(run_folder(tmp_path, "test_new", "shapes", 3), 10)
    _, out, err = parse(tmp_path, "--base2new", "--format", "csv")
    assert table(out)["P2C", "shapes"]["base"] == 91
    assert re.search("shapes: .*1, 2, 10.*1, 3, 10.* 1, 10\n", err)
    assert parse(tmp_path, "--base2new", "--strict")[0] == 1


def test_what_is_missing_is_named(tmp_path, parse):
    write_pair(tmp_path, "birds", 1, 90, 70)
    write_pair(tmp_path, "plants", 1, 90, 70)
    write_pair(tmp_path, "plants", 1, 90, 70, trainer="MaPLe")
    write_results(run_folder(tmp_path, "train_base", "birds", 1, "MaPLe"), 80)
    write_results(run_folder(tmp_path, "test_new", "birds", 1, "MaPLe"), 0, finished=False)
    status, out, _ = parse(tmp_path, "--base2new")
    assert status == 0
    assert f"not counted: {run_folder(tmp_path, 'test_new', 'birds', 1, 'MaPLe')}: not finished" in out
    assert re.search("MaPLe, tiny_shapes, 16 shots: birds: base .*1, novel ", out)
    assert re.search("MaPLe, tiny_shapes, 16 shots: .*birds.* 1 of 2 ", out)


def test_an_average_over_unequal_seeds_has_no_spread(tmp_path, parse):
    write_pair(tmp_path, "birds", 1, 80, 60)
    write_pair(tmp_path, "plants", 1, 90, 70)
    write_pair(tmp_path, "plants", 2, 92, 72)
    average = table(parse(tmp_path, "--base2new", "--format", "csv")[1])["P2C", "average"]
    assert average == pytest.approx({"base": 85.5, "novel": 65.5, "hm": 2 * 85.5 * 65.5 / 151})


def test_the_same_run_in_two_roots_counts_once(tmp_path, parse):
    write_pair(tmp_path / "a", "shapes", 1, 90, 70)
    write_pair(tmp_path / "b", "shapes", 1, 10, 10)
    _, out, err = parse(tmp_path / "a", tmp_path / "b", "--base2new", "--format", "csv")
    assert table(out)["P2C", "shapes"]["base"] == 90 and str(tmp_path / "b") in err


def test_the_harmonic_mean_of_nothing_is_zero():
    assert harmonic_mean(0, 0) == 0
    assert harmonic_mean(82.28, 75.14) == pytest.approx(78.55, abs=0.005)  # MaPLe's published average
