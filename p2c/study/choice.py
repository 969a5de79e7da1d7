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
from p2c.study.plan import Cloud, Settings, Space, Study

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


def load_choice(study: Study, place: Place) -> Choice | None:
    """Return the frozen choice in a study's folder, or None if there is none; see `read_choice`."""
    path = os.path.join(place.output, FILE)
    return read_choice(study, path) if os.path.isfile(path) else None


def read_choice(study: Study, path: str) -> Choice:
    """Read a frozen choice.

    Raises:
        ValueError: the file is damaged, or another search made the choice.
    """
    remedy = "delete it to search anew, or choose another --output"
    try:
        content = read_json(path)
        own, inherits, cloud = content["chosen"], content["inherits"], content["cloud"]
        known = content["format"] == FORMAT and isinstance(content["search_sha256"], str)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as the choice of a study ({error}); {remedy}") from error
    if not known:
        raise ValueError(f"{path} is not the choice of a study; {remedy}")
    if content["search_sha256"] != study.space_digest:
        raise ValueError(f"{path} was made by another search than the one in {study.path}; {remedy}")
    return Choice(own, inherits, cloud, hashlib.sha256(Path(path).read_bytes()).hexdigest(), content)


def search(study: Study, place: Place, jobs: int) -> Choice:
    """Run all trials and freeze the choice.

    A trial's score is the harmonic mean of the accuracies on the validation images of the two halves of the base
    classes, averaged over datasets and seeds; among equal scores the first trial wins. Cloud inference is scored by the
    negative log-likelihood. A trial with a loss that is not finite has no score.

    Raises:
        ValueError: no trial of a trainer has a score.
    """
    choice = Choice({}, {space.trainer: space.inherits for space in study.search.spaces}, {}, "", {})
    trials: dict[str, list[dict]] = {}
    for wave in waves(study.search.spaces):
        cells = {(space.trainer, i): development_cells(study, space.trainer, {**start(choice, space), **settings})
                 for space in wave for i, settings in enumerate(space.trials())}
        faults = run_cells(f"Search of {', '.join(space.trainer for space in wave)}", chain(*cells.values()), place,
                           jobs)
        for space in wave:
            scored = [{"settings": settings, **score(cells[space.trainer, i], faults, place)}
                      for i, settings in enumerate(space.trials())]
            trials[space.trainer] = scored
            choice.own[space.trainer] = best(space.trainer, scored)["settings"]
    cloud_trials = search_cloud(study, study.cloud, choice, place, jobs) if study.cloud else {}
    path = os.path.join(place.output, FILE)
    write_json({
        "format": FORMAT, "version": 1, "search_sha256": study.space_digest, "config": study.config,
        "datasets": study.search.datasets, "seeds": study.search.seeds, "classes": DEVELOPMENT.halves,
        "images": DEVELOPMENT.split, "chosen": choice.own, "inherits": choice.inherits,
        "cloud": {trainer: min(scored, key=lambda trial: trial["nll"])["settings"]
                  for trainer, scored in cloud_trials.items()},
        "trials": trials, "cloud_trials": cloud_trials,
    }, path)
    return read_choice(study, path)


def waves(spaces: Sequence[Space]) -> list[list[Space]]:
    """Group the spaces so that each inherits only from groups before its own."""
    left, known = list(spaces), {""}
    ordered = []
    while left:
        ready = [space for space in left if space.inherits in known]
        left = [space for space in left if space not in ready]
        known |= {space.trainer for space in ready}
        ordered.append(ready)
    return ordered


def start(choice: Choice, space: Space) -> Settings:
    """Return the settings that all trials of a space share."""
    return choice.settings(space.inherits) if space.inherits else {}


def development_cells(study: Study, trainer: str, settings: Settings, tests: Sequence[Settings] = ({},)) -> list[Cell]:
    """Return a trial's cells, one for each dataset and seed of the search."""
    return [Cell(DEVELOPMENT, trainer, study.config, dataset, seed, {**study.settings, **settings}, list(tests))
            for dataset in study.search.datasets for seed in range(1, study.search.seeds + 1)]


def score(cells: Sequence[Cell], faults: dict[str, str], place: Place) -> dict:
    """Return a trial's means of base, novel and hm over its cells, or the fault if a cell has no result."""
    for cell in cells:
        if cell.name in faults:
            return {"hm": None, "fault": faults[cell.name]}
    found = [measured(cell, place, {}) for cell in cells]
    return {"base": fmean(each.base for each in found), "novel": fmean(each.novel for each in found),
            "hm": fmean(each.hm for each in found)}


def best(trainer: str, scored: Sequence[dict]) -> dict:
    """Return the first trial with the highest score."""
    if all(trial["hm"] is None for trial in scored):
        raise ValueError(f"No trial of {trainer} ended with a finite loss: {scored[0]['fault']}; change its grid")
    return max(scored, key=lambda trial: -math.inf if trial["hm"] is None else trial["hm"])


def search_cloud(study: Study, cloud: Cloud, choice: Choice, place: Place, jobs: int) -> dict[str, list[dict]]:
    """Test cloud inference on the models that the search has trained, and return the scored trials by trainer."""
    settings = cloud.trials()
    cells = {trainer: development_cells(study, trainer, choice.settings(trainer), [{}, *settings])
             for trainer in cloud.trainers}
    run_cells("Search of cloud inference", chain(*cells.values()), place, jobs)
    return {trainer: [{"settings": trial, **cloud_score(cells[trainer], trial, place)} for trial in settings]
            for trainer in cells}


def cloud_score(cells: Sequence[Cell], trial: Settings, place: Place) -> dict:
    """Return a trial's means over its cells and both halves of their classes."""
    found = [measured(cell, place, trial) for cell in cells]
    return {"hm": fmean(each.hm for each in found),
            **{name: fmean(half[name] for each in found for half in each.halves) for name in ("ece", "nll")}}
