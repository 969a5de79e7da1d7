"""The search: settings are chosen on development data and frozen in a file before anything is reported."""
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

from p2c.engine.files import read_json, write_json
from p2c.study.cells import DEVELOPMENT, Cell, Place, measured, run_cells
from p2c.study.plan import Settings, Study

FILE = "choice.json"
FORMAT = "p2c-study-choice"


@dataclass(frozen=True)
class Choice:
    """The chosen settings."""

    own: dict[str, Settings]  # by trainer, without inherited ones
    inherits: dict[str, str]  # trainer -> the trainer whose settings it inherits, or ""
    cloud: dict[str, Settings]  # of cloud inference, by trainer
    digest: str  # SHA-256 of the file
    content: dict  # of the file

    def settings(self, *trainers: str) -> Settings:
        """Return the settings chosen for trainers, with those that the first inherits; later trainers win."""
        found: Settings = {}
        for trainer in trainers:
            if self.inherits.get(trainer) and trainer == trainers[0]:
                found |= self.settings(self.inherits[trainer])
            found |= self.own[trainer]
        return found


def read_choice(study: Study, place: Place) -> Choice:
    """Read the frozen choice in a study's folder.

    Raises:
        ValueError: the file is damaged, or another search made the choice.
    """
    path = os.path.join(place.output, FILE)
    remedy = "delete it to search anew, or choose another --output"
    try:
        content = read_json(path)
        found = Choice(content["chosen"], content["inherits"], content["cloud"],
                       hashlib.sha256(Path(path).read_bytes()).hexdigest(), content)
        form, made_by = content["format"], content["search_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as the choice of a study ({error}); {remedy}") from error
    if form != FORMAT:
        raise ValueError(f"{path} is not the choice of a study; {remedy}")
    if made_by != study.space_digest:
        raise ValueError(f"{path} was made by another search than the one in {study.path}; {remedy}")
    return found


def search(study: Study, place: Place, jobs: int) -> Choice:
    """Run all trials, freeze the choice and return it.

    A trial's score is the harmonic mean of the accuracies on the validation images of the two halves of the base
    classes, averaged over datasets and seeds; among equal scores the first trial wins. Cloud inference is scored by the
    negative log-likelihood. A trial with a loss that is not finite has no score.

    Raises:
        ValueError: no trial of a trainer has a score.
    """
    choice = Choice({}, {space.trainer: space.inherits for space in study.search.spaces}, {}, "", {})
    trials: dict[str, list[dict]] = {}
    for space in study.search.spaces:  # those that others inherit from come first
        inherited = choice.settings(space.inherits) if space.inherits else {}
        cells = [development_cells(study, space.trainer, {**inherited, **settings}) for settings in space.trials()]
        faults = run_cells(f"Search of {space.trainer}", chain(*cells), place, jobs)
        trials[space.trainer] = [{"settings": settings, **score(trial, faults, place)}
                                 for settings, trial in zip(space.trials(), cells, strict=True)]
        choice.own[space.trainer] = best(space.trainer, trials[space.trainer])["settings"]
    cloud_trials = search_cloud(study, choice, place, jobs)
    write_json({
        "format": FORMAT, "version": 1, "search_sha256": study.space_digest, "config": study.config,
        "datasets": study.search.datasets, "seeds": study.search.seeds, "classes": DEVELOPMENT.halves,
        "images": DEVELOPMENT.split, "chosen": choice.own, "inherits": choice.inherits,
        "cloud": {trainer: min(scored, key=lambda trial: trial["nll"])["settings"]
                  for trainer, scored in cloud_trials.items()},
        "trials": trials, "cloud_trials": cloud_trials,
    }, os.path.join(place.output, FILE))
    return read_choice(study, place)


def development_cells(study: Study, trainer: str, settings: Settings, tests: Sequence[Settings] = ({},)) -> list[Cell]:
    """Return a trial's cells, one for each dataset and seed of the search."""
    return [Cell(DEVELOPMENT, trainer, study.config, dataset, seed, {**study.settings, **settings}, tests)
            for dataset in study.search.datasets for seed in range(1, study.search.seeds + 1)]


def score(cells: Sequence[Cell], faults: dict[str, str], place: Place) -> dict:
    """Return a trial's means of base, novel and hm over its cells, or the fault if a cell has no result."""
    for cell in cells:
        if cell.name in faults:
            return {"hm": None, "fault": faults[cell.name]}
    found = [measured(cell, place, {}) for cell in cells]
    return {name: fmean(each.value(name) for each in found) for name in ("base", "novel", "hm")}


def best(trainer: str, scored: Sequence[dict]) -> dict:
    """Return the first trial with the highest score."""
    if all(trial["hm"] is None for trial in scored):
        raise ValueError(f"No trial of {trainer} ended with a finite loss: {scored[0]['fault']}; change its grid")
    return max(scored, key=lambda trial: -math.inf if trial["hm"] is None else trial["hm"])


def search_cloud(study: Study, choice: Choice, place: Place, jobs: int) -> dict[str, list[dict]]:
    """Test cloud inference on the models that the search has trained, and return the scored trials by trainer."""
    if not study.cloud:
        return {}
    trials = study.cloud.trials()
    cells = {trainer: development_cells(study, trainer, choice.settings(trainer), [{}, *trials])
             for trainer in study.cloud.trainers}
    run_cells("Search of cloud inference", chain(*cells.values()), place, jobs)
    return {trainer: [cloud_score(cells[trainer], trial, place) for trial in trials] for trainer in cells}


def cloud_score(cells: Sequence[Cell], trial: Settings, place: Place) -> dict:
    """Return a trial with its means over its cells and both halves of their classes."""
    found = [measured(cell, place, trial) for cell in cells]
    return {"settings": trial, "hm": fmean(each.hm for each in found),
            **{name: fmean(half[name] for each in found for half in each.halves) for name in ("ece", "nll")}}
