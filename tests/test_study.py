"""The study: what its file may say, what it is allowed to look at before its choice is frozen, and its statistics."""
import csv
import json
import math
import os
import re
import shutil
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import yaml
from messages import naming
from scipy import stats

from p2c.cli import study
from p2c.config import config_file, extend_cfg
from p2c.datasets.shapes import FAMILY, generate
from p2c.engine.files import read_json
from p2c.engine.results import read_results
from p2c.framework import get_cfg_default
from p2c.study.analysis import equal_spreads, paired, pooled
from p2c.study.cells import REPORT, Cell, Measured
from p2c.study.choice import FILE
from p2c.study.plan import read_study
from p2c.study.report import Row, Rows, sentence
from p2c.tables.cells import harmonic_mean
from p2c.utils.console import DONE, FAILED, INTERRUPTED, MISTAKE

SMALL = {
    "config": "tiny_shapes",
    "settings": {"DATASET.NUM_SHOTS": 1, "DATALOADER.TRAIN_X.BATCH_SIZE": 6, "OPTIM.MAX_EPOCH": 2,
                 "MODEL.BACKBONE.WEIGHTS": "random"},
    "search": {"datasets": ["shapes_sizes"], "seeds": 1, "spaces": [
        {"trainer": "MaPLe", "grid": {"OPTIM.LR": [1e-9, 0.05]}},
        {"trainer": "P2C", "inherits": "MaPLe", "grid": {"TRAINER.PROMPT_DENOISING.NOISE_STD": [1.0, 500.0]}}]},
    "cloud": {"trainers": ["P2C"], "samples": 2, "levels": [0.5], "averages": ["logits"]},
    "compare": {"datasets": ["shapes"], "seeds": 2, "trainers": ["ZeroshotCLIP", "MaPLe", "P2C"],
                "difference": ["P2C", "MaPLe"]},
    "ablations": {"dataset": "shapes", "seeds": 2, "groups": [{"title": "Which part", "variants": [
        {"name": "MaPLe", "trainer": "MaPLe"},
        {"name": "mapper", "trainer": "P2C", "settings": {"TRAINER.PROMPT_DENOISING.ENABLED": False}},
        {"name": "diverging", "trainer": "P2C", "settings": {"TRAINER.P2C.MAPPER.LOSS_WEIGHT": 1e39}}]}]},
    "initialisations": {"dataset": "shapes", "seeds": 2, "trainers": ["MaPLe", "P2C"]},
}


def write_study(folder, **changes):
    path = Path(folder) / "study.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return str(path)


def status_of(*words):
    """The exit status of the command."""
    try:
        return study.main(words)
    except SystemExit as stop:
        return stop.code


def records(output):
    return {path.parent: read_results(str(path.parent)) for path in Path(output).rglob("results.json")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole study on few pictures: its file, its folder, and the records that there were after the search alone."""
    folder = tmp_path_factory.mktemp("study")
    for name in ("shapes", "shapes_sizes"):
        generate(name, folder / "data" / name, {"train": 1, "val": 2, "test": 2})
    path, output = write_study(folder), folder / "output"
    words = [path, "--output", str(output), "--root", str(folder / "data")]
    assert status_of(*words, "--stage", "report", "--jobs", "1") == MISTAKE and not output.exists()
    assert study.main([*words, "--stage", "search", "--jobs", "2"]) == DONE
    searched = records(output)
    assert study.main([*words, "--jobs", "1"]) == DONE
    return folder, output, words, searched


# The search and its choice


def test_before_the_choice_only_validation_images_of_base_classes_of_other_datasets_are_looked_at(made):
    _, _, _, searched = made
    tests = [record for record in searched.values() if record["mode"] == "eval"]
    assert {record["dataset"] for record in searched.values()} == {"ShapesSizes"}
    assert {record["subsample_classes"] for record in searched.values()} == {"dev_base", "dev_new"}
    assert {record["split"] for record in tests} == {"val"} and len(tests) == 2 * 2 * 2 + 2
    assert not any("metrics" in record for record in searched.values() if record["mode"] == "train")
    base = {name for record in tests if record["subsample_classes"] == "dev_base" for name in
            record["data"]["classnames"]}
    new = {name for record in tests if record["subsample_classes"] == "dev_new" for name in
           record["data"]["classnames"]}
    from p2c.datasets.shapes import SIZES
    assert base == set(SIZES[:6]) and new == set(SIZES[6:12])
    assert {record["metrics"]["total"] for record in tests} == {6 * 2}  # all validation images, not as many as shots


def test_the_trial_with_the_best_harmonic_mean_is_frozen_with_all_scores(made):
    _, output, _, searched = made
    choice = read_json(output / FILE)
    for trainer, trials in choice["trials"].items():
        for trial in trials:
            (key, value), = trial["settings"].items()
            *nodes, leaf = key.split(".")
            scores = {}
            for record in searched.values():
                node = record["config"]
                for name in nodes:
                    node = node[name]
                plain = record["mode"] == "eval" and not record["config"]["TEST"]["CLOUD_SAMPLES"]
                if plain and record["trainer"] == trainer and node[leaf] == value:
                    scores[record["subsample_classes"]] = record["metrics"]["accuracy"]
            assert trial["hm"] == pytest.approx(harmonic_mean(scores["dev_base"], scores["dev_new"]))
        best = max(trial["hm"] for trial in trials)
        assert choice["chosen"][trainer] == next(trial["settings"] for trial in trials if trial["hm"] == best)
    assert choice["cloud"]["P2C"] == {"TEST.CLOUD_SAMPLES": 2, "TEST.CLOUD_LEVEL": 0.5, "TEST.CLOUD_AVERAGE": "logits"}


def test_p2c_has_maples_choice_below_its_own(made):
    _, output, _, _ = made
    chosen = read_json(output / FILE)["chosen"]
    runs = [record for record in records(output).values() if record["trainer"] == "P2C" and record["split" if
            record["mode"] == "eval" else "mode"] in ("test", "train")]
    assert {record["config"]["OPTIM"]["LR"] for record in runs} == {chosen["MaPLe"]["OPTIM.LR"]}


def test_another_search_does_not_take_over_a_frozen_choice(made, capsys):
    folder, output, words, _ = made
    search = {**SMALL["search"], "seeds": 2}
    changed = write_study(output, search=search)
    assert status_of(changed, *words[1:]) == MISTAKE
    error = capsys.readouterr().err
    assert re.search(naming(output / FILE, changed, "delete"), error)
    assert error.count("\n") == 1
    Path(changed).unlink()


@pytest.mark.parametrize("content", ["{", "[]", '{"chosen": {}, "inherits": {}, "cloud": {}, "format": "other", '
                                                '"search_sha256": ""}'])
def test_a_file_that_is_no_choice_is_refused(made, tmp_path, capsys, content):
    (tmp_path / FILE).write_text(content)
    assert status_of(made[2][0], "--output", str(tmp_path)) == MISTAKE
    error = capsys.readouterr().err
    assert re.search(naming(tmp_path / FILE, "delete"), error) and error.count("\n") == 1


# The report


def test_every_reported_test_records_the_choice(made):
    import hashlib
    _, output, _, searched = made
    digest = hashlib.sha256((output / FILE).read_bytes()).hexdigest()
    tests = [record for folder, record in records(output).items() if record["mode"] == "eval" and folder not in
             searched]
    assert tests and {record["choice"] for record in tests} == {digest} and {record["split"] for record in tests} == {
        "test"}
    with open(output / "cells.csv", newline="") as file:
        assert {row["choice_sha256"] for row in csv.DictReader(file)} == {digest}
    assert digest in (output / "report.md").read_text()


def test_the_table_has_every_run_and_the_report_its_means(made):
    _, output, _, _ = made
    with open(output / "cells.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = {part: sum(row["part"] == part for row in rows) for part in dict.fromkeys(row["part"] for row in rows)}
    assert counts == {"compare": 1 + 2 + 2, "cloud": 2, "ablations: Which part": 4, "initialisations": 4}
    for row in rows:
        assert float(row["hm"]) == pytest.approx(harmonic_mean(float(row["base"]), float(row["novel"])))
    hm = {trainer: [float(row["hm"]) for row in rows if row["part"] == "compare" and row["name"] == trainer
                    and row["dataset"] == "shapes"] for trainer in ("P2C", "MaPLe")}
    expected = stats.ttest_rel(hm["P2C"], hm["MaPLe"]).confidence_interval(0.95)
    words = f"{np.mean(hm['P2C']) - np.mean(hm['MaPLe']):+.1f} [{expected.low:+.1f}, {expected.high:+.1f}]"
    line = next(line for line in (output / "report.md").read_text().splitlines()
                if line.startswith("| shapes ") and "[" in line)
    assert words in line
    for name in ("differences.png", "ablations.png", "reliability.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG") and f"({name})" in (output / "report.md").read_text()


def test_an_ablation_whose_loss_is_not_finite_has_no_result(made):
    _, output, _, _ = made
    line = next(line for line in (output / "report.md").read_text().splitlines() if line.startswith("| diverging"))
    assert line.count("2 of 2") == 1 and "±" not in line
    assert len(list(output.glob("runs/report/shapes/P2C/*/seed*/fault.txt"))) == 2


def test_initialisations_share_the_seed_and_differ_in_the_initial_prompts(made):
    _, output, _, _ = made
    runs = [record for record in records(output).values()
            if record["mode"] == "train" and record["config"]["TRAIN"]["INIT_SEED"] >= 0]
    assert {record["seed"] for record in runs} == {1} and len({record["weights"] for record in runs}) == len(runs) == 4


def test_only_what_is_missing_is_done_again_and_the_report_comes_out_the_same(made):
    _, output, words, _ = made
    written = ("report.md", "cells.csv")
    before = [(output / name).read_bytes() for name in written]
    deleted = next(output.glob("runs/report/shapes/P2C/*/seed2"))
    shutil.rmtree(deleted)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("results.json")}
    assert study.main([*words, "--jobs", "1"]) == DONE
    assert (deleted / "train/results.json").is_file()
    assert [(output / name).read_bytes() for name in written] == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_run_of_other_settings_in_a_cells_folder_is_refused(made, capsys):
    _, output, words, _ = made
    path = next(output.glob("runs/report/shapes/MaPLe/*/seed1/train/results.json"))
    content = path.read_bytes()
    record = json.loads(content)
    record["config"]["INPUT"]["INTERPOLATION"] = "nearest"
    path.write_text(json.dumps(record))
    assert status_of(*words, "--jobs", "1") == MISTAKE
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(naming(path.parent, "INPUT.INTERPOLATION", "delete"), error)
    path.write_bytes(content)


# The file


@pytest.mark.parametrize("name", ["shapes", "smoke", "vit_b16"])
def test_shipped_studies_can_be_read_and_report_nothing_that_they_search_on(name):
    read = read_study(config_file("studies", name))
    assert len({len(space.trials()) for space in read.search.spaces}) == 1
    for trainer in {*(space.trainer for space in read.search.spaces), *read.compare.trainers}:
        assert os.path.isfile(config_file("trainers", trainer, read.config))
    for dataset in (*read.search.datasets, *read.compare.datasets):
        assert os.path.isfile(config_file("datasets", dataset))


def test_the_built_in_search_shares_no_class_and_no_style_with_what_is_reported():
    read = read_study(config_file("studies", "shapes"))
    searched, reported = ([FAMILY[name] for name in part.datasets] for part in (read.search, read.compare))
    assert not {name for member in searched for name in member.contents} & {
        name for member in reported for name in member.contents}
    assert not {member.style.func for member in searched} & {member.style.func for member in reported}


def test_shipped_settings_are_those_that_the_study_has_chosen():
    choice = read_json(Path(__file__).resolve().parents[1] / "docs/results/choice.json")
    assert choice["search_sha256"] == read_study(config_file("studies", "shapes")).space_digest

    def shipped(trainer, name, keys):
        cfg = get_cfg_default()
        extend_cfg(cfg)
        cfg.merge_from_file(config_file("trainers", trainer, name))
        return {key: attrgetter(key)(cfg) for key in keys}

    chosen = choice["chosen"]
    chosen["P2C"].update(chosen[choice["inherits"]["P2C"]])
    for trainer, settings in chosen.items():
        assert shipped(trainer, "tiny_shapes", settings) == settings
    denoising = {key: value for key, value in chosen["P2C"].items() if key.startswith("TRAINER.")}
    carried = [path.stem for path in Path(config_file("trainers", "P2C", "tiny_shapes")).parent.glob("vit*.yaml")]
    assert len(carried) == 4 and all(shipped("P2C", name, denoising) == denoising for name in carried)


def test_the_studys_gaussian_has_the_mixtures_variance():
    from p2c.denoising.mixture import GaussianMixture
    cfg = get_cfg_default()
    extend_cfg(cfg)
    node = cfg.TRAINER.PROMPT_DENOISING
    groups = {group.title: group for group in read_study(config_file("studies", "shapes")).ablations.groups}
    settings = groups["Distribution of the prompt noise"].variants[1].settings
    assert settings["TRAINER.PROMPT_DENOISING.GMM_STDS"] == [
        pytest.approx(GaussianMixture(node["GMM_MEANS"], node["GMM_STDS"]).std, rel=1e-12)]


def changed(*keys, value):
    """SMALL with an entry, reached by these keys, set; None deletes it."""
    content = json.loads(json.dumps(SMALL))
    node = content
    for key in keys[:-1]:
        node = node[key]
    if value is None:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    return content


@pytest.mark.parametrize("keys, value, named", [
    (("search", "datasets"), ["shapes"], ("search.datasets", "shapes")),
    (("search", "datasets"), [], ("search.datasets", "[]")),
    (("search", "datasets"), ["dtd", "dtd"], ("search.datasets", "dtd")),
    (("search", "seeds"), 0, ("search.seeds", "0")),
    (("search", "seeds"), "many", ("search.seeds", "'many'")),
    (("search", "seeds"), True, ("search.seeds", "True")),
    (("search", "speed"), 1, ("search.speed",)),
    (("search", "spaces", 0, "grid"), {"OPTIM.LR": [1.0]}, ("trials", "MaPLe 1", "P2C 2")),
    (("search", "spaces", 0, "grid"), {"OPTIM.LR": []}, ("search.spaces[0].grid.OPTIM.LR", "[]")),
    (("search", "spaces", 1, "inherits"), "CoOp", ("P2C", "CoOp")),
    (("search", "spaces", 1, "trainer"), "MaPLe", ("search.spaces", "MaPLe")),
    (("compare", "trainers"), ["MaPLe", "P2C", "CoOp"], ("compare.trainers", "CoOp", "MaPLe, P2C")),
    (("compare", "difference"), ["P2C"], ("compare", "difference", "['P2C']")),
    (("compare", "seeds"), 1, ("compare.seeds", "1", "2")),
    (("compare",), None, ("compare",)),
    (("compare",), [], ("compare", "[]")),
    (("cloud", "levels"), ["high"], ("cloud.levels[0]", "'high'")),
    (("cloud", "trainers"), ["CoOp"], ("cloud.trainers", "CoOp")),
    (("ablations", "dataset"), "shapes_sizes", ("search.datasets", "shapes_sizes")),
    (("ablations", "groups", 0, "variants", 1, "against"), "nobody", ("nobody",)),
    (("ablations", "groups", 0, "variants", 1, "name"), "MaPLe", ("groups[0].variants", "MaPLe")),
    (("ablations", "groups", 0, "variants", 1, "chosen"), ["CoOp"], ("Which part", "mapper", "chosen", "CoOp")),
    (("initialisations", "trainers"), ["VPT"], ("initialisations.trainers", "VPT")),
])
def test_a_study_that_makes_no_sense_is_refused_by_its_entry(tmp_path, capsys, keys, value, named):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(changed(*keys, value=value)))
    assert status_of(str(path), "--output", str(tmp_path / "out")) == MISTAKE
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and re.search(naming(*named), error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content, named", [
    ("a: [", "YAML"), ("- 1", "[1]"), ("!!python/object/apply:os.system ['x']", "YAML")])
def test_what_is_no_study_is_refused(tmp_path, capsys, content, named):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert status_of(str(path)) == status_of(str(tmp_path / "none.yaml")) == MISTAKE
    first, second = capsys.readouterr().err.splitlines()
    assert re.search(naming(path, named), first) and str(tmp_path / "none.yaml") in second


@pytest.mark.parametrize("error, status, words", [
    (BrokenProcessPool(), FAILED, "memory"),
    (FloatingPointError("the loss is nan"), FAILED, "the loss is nan"),
    (KeyboardInterrupt(), INTERRUPTED, "same command")])
def test_what_ends_a_study_is_one_line_and_a_status(tmp_path, monkeypatch, capsys, error, status, words):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(study, "search", fail)
    assert status_of(write_study(tmp_path), "--output", str(tmp_path / "out")) == status
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_settings_that_no_trainer_has_are_refused_before_anything_runs(tmp_path, capsys):
    path = write_study(tmp_path, settings={"OPTIM.SPEED": 1})
    assert status_of(path, "--output", str(tmp_path / "out"), "--root", str(tmp_path), "--jobs", "1") == MISTAKE
    assert "OPTIM.SPEED" in capsys.readouterr().err.splitlines()[-1]


# Statistics


def test_intervals_are_students():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, 20), rng.normal(0, 2, 20)
    found, expected = paired(a - b), stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert (found.mean, found.low, found.high, found.p) == pytest.approx(
        (np.mean(a - b), interval.low, interval.high, expected.pvalue))
    interval = expected.confidence_interval(1 - 0.05 / 3)
    corrected = paired(a - b, comparisons=3)
    assert (corrected.low, corrected.high) == pytest.approx((interval.low, interval.high))
    assert corrected.p == pytest.approx(min(1, 3 * expected.pvalue))


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = np.mean([not paired(rng.normal(0, 1, 5)).includes_zero for _ in range(2000)])
    assert held == pytest.approx(0.05, abs=0.015)


def test_equal_differences_leave_no_doubt_and_one_is_too_few():
    assert paired([0.0, 0.0, 0.0]) == (0, 0, 0, 1, 3) and paired([0.0, 0.0]).includes_zero
    assert paired([1.0, 1.0])[:4] == (1, 1, 1, 0)
    with pytest.raises(ValueError, match=naming("two", "1")):
        paired([1.0])


def test_pooling_averages_each_seed_over_the_datasets():
    found = pooled({"a": [1.0, 2.0, 3.0], "b": [3.0, 0.0, 1.0]})
    assert found == paired([2.0, 1.0, 2.0])


def test_spreads_are_compared_by_the_correlation_of_sum_and_difference():
    rng = np.random.default_rng(2)
    shared = rng.normal(0, 1, 20)
    a, b = shared + rng.normal(0, 3, 20), shared + rng.normal(0, 0.5, 20)
    p = equal_spreads(a.tolist(), b.tolist())
    r = np.corrcoef(a + b, a - b)[0, 1]
    t = r * math.sqrt(18 / (1 - r * r))
    assert p == pytest.approx(2 * stats.t.sf(abs(t), 18)) and p < 0.001
    assert equal_spreads([1.0, 2.0, 4.0], [1.0, 2.0, 4.0]) == 1


def test_runs_of_one_seed_are_paired_by_their_initial_prompts():
    """Not by the names of their folders, which are digests of the settings."""
    compared = {}
    for trainer, rate in (("P2C", 0.1), ("MaPLe", 0.2)):
        cells = [Cell(REPORT, trainer, "tiny_shapes", "shapes", 1, {"TRAIN.INIT_SEED": seed, "OPTIM.LR": rate})
                 for seed in range(20)]
        compared[trainer] = [Row("initialisations", trainer, cell, {}, Measured(float(seed), 0.0, ()))
                             for seed, cell in enumerate(cells)]
    rows = Rows([*compared["P2C"], *compared["MaPLe"]], Counter())
    assert rows.differences("initialisations", ("P2C", "MaPLe"), "shapes", "base") == [0.0] * 20


def test_an_interval_with_zero_is_called_no_difference():
    assert "no difference" in sentence("P2C", "MaPLe", paired([1.0, -1.0, 0.5]))
    assert "P2C is worse than MaPLe" in sentence("P2C", "MaPLe", paired([-1.0, -1.1, -0.9]))
    assert "P2C is better than MaPLe" in sentence("P2C", "MaPLe", paired([1.0, 1.1, 0.9]))
