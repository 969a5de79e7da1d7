"""Settings are searched on development data, and what was found is frozen in a file before anything is reported."""
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from p2c.engine.files import read_json, write_json
from p2c.study.cells import DEVELOPMENT, Cell, Place, measured, run_cells
from p2c.study.plan import Settings, Space, Study

FILE = "choice.json"
FORMAT = "p2c-study-choice"


@dataclass(frozen=True)
class Choice:
    """What was chosen: settings by trainer, without those that it inherits, and of cloud inference; SHA-256 of the
    file."""

    own: dict[str, Settings]
    inherits: dict[str, str]
    cloud: dict[str, Settings]
    digest: str
    content: dict

    def settings(self, *trainers: str) -> Settings:
        """The chosen settings of trainers, with inherited ones; later trainers' own win."""
        found: Settings = {}
        for trainer in trainers:
            if self.inherits.get(trainer) and trainer == trainers[0]:
                found |= self.settings(self.inherits[trainer])
            found |= self.own[trainer]
        return found


def load_choice(study: Study, place: Place) -> Choice | None:
    """The frozen choice in a study's folder, None if none has been made.

    Raises:
        ValueError: a file that is damaged, or the choice of another search.
    """
    path = os.path.join(place.output, FILE)
    if not os.path.isfile(path):
        return None
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
        raise ValueError(f"{path} was chosen by another search than the one in {study.path}; {remedy}")
    return Choice(own, inherits, cloud, hashlib.sha256(Path(path).read_bytes()).hexdigest(), content)


def search(study: Study, place: Place, jobs: int) -> None:
    """Run all trials and freeze the choice.

    A trial's score is the harmonic mean of the accuracies on the validation images of the two halves of the base
    classes, averaged over data sets and seeds; the first of equals is chosen. The cloud's is their negative
    log-likelihood. A trial with a loss that is not finite has no score.

    Raises:
        ValueError: no trial of a trainer has a score.
    """
    choice = Choice({}, {space.trainer: space.inherits for space in study.search.spaces}, {}, "", {})
    trials: dict[str, list[dict]] = {}
    for wave in waves(study.search.spaces):
        cells = {(space.trainer, i): development_cells(study, space.trainer, {**start(choice, space), **settings})
                 for space in wave for i, settings in enumerate(space.trials())}
        faults = run_cells(f"Search of {', '.join(space.trainer for space in wave)}", sum(cells.values(), []), place,
                           jobs)
        for space in wave:
            scored = [{"settings": settings, **score(cells[space.trainer, i], faults, place)}
                      for i, settings in enumerate(space.trials())]
            trials[space.trainer] = scored
            choice.own[space.trainer] = best(space.trainer, scored)["settings"]
    cloud_trials = search_cloud(study, choice, place, jobs) if study.cloud else {}
    write_json({
        "format": FORMAT, "version": 1, "search_sha256": study.space_digest, "config": study.config,
        "datasets": study.search.datasets, "seeds": study.search.seeds, "classes": DEVELOPMENT.halves,
        "images": DEVELOPMENT.split, "chosen": choice.own, "inherits": choice.inherits,
        "cloud": {trainer: min(scored, key=lambda trial: trial["nll"])["settings"]
                  for trainer, scored in cloud_trials.items()},
        "trials": trials, "cloud_trials": cloud_trials,
    }, os.path.join(place.output, FILE))


def waves(spaces: Sequence[Space]) -> list[list[Space]]:
    """Spaces in groups, each of which needs the choices of groups before it alone."""
    left, ordered, known = list(spaces), [], {""}
    while left:
        ready = [space for space in left if space.inherits in known]
        left = [space for space in left if space not in ready]
        known |= {space.trainer for space in ready}
        ordered.append(ready)
    return ordered


def start(choice: Choice, space: Space) -> Settings:
    """What all trials of a space have in common."""
    return choice.settings(space.inherits) if space.inherits else {}


def development_cells(study: Study, trainer: str, settings: Settings, tests: Sequence[Settings] = ({},)) -> list[Cell]:
    """A trial's cells: every data set and seed of the search."""
    return [Cell(DEVELOPMENT, trainer, study.config, dataset, seed, {**study.settings, **settings}, list(tests))
            for dataset in study.search.datasets for seed in range(1, study.search.seeds + 1)]


def score(cells: Sequence[Cell], faults: dict[str, str], place: Place) -> dict:
    """Means of a trial over its cells: base, novel, hm; none of these but the fault if a cell has no result."""
    if fault := next((faults[cell.name] for cell in cells if cell.name in faults), ""):
        return {"hm": None, "fault": fault}
    found = [measured(cell, place, {}) for cell in cells]
    return {"base": fmean(each.base for each in found), "novel": fmean(each.novel for each in found),
            "hm": fmean(each.hm for each in found)}


def best(trainer: str, scored: Sequence[dict]) -> dict:
    """The trial with the highest score, the first of equals."""
    if all(trial["hm"] is None for trial in scored):
        raise ValueError(f"No trial of {trainer} ended with a finite loss: {scored[0]['fault']}; change its grid")
    return max(scored, key=lambda trial: -math.inf if trial["hm"] is None else trial["hm"])


def search_cloud(study: Study, choice: Choice, place: Place, jobs: int) -> dict[str, list[dict]]:
    """The trials of cloud inference on the models that the search has trained, by trainer; without a cloud first."""
    settings = study.cloud.trials()
    cells = {trainer: development_cells(study, trainer, choice.settings(trainer), [{}, *settings])
             for trainer in study.cloud.trainers}
    run_cells("Search of the cloud", sum(cells.values(), []), place, jobs)
    return {trainer: [{"settings": trial, **cloud_score(cells[trainer], trial, place)} for trial in settings]
            for trainer in cells}


def cloud_score(cells: Sequence[Cell], trial: Settings, place: Place) -> dict:
    """Means over a trial's cells and both halves of their classes."""
    found = [measured(cell, place, trial) for cell in cells]
    return {"hm": fmean(each.hm for each in found),
            **{name: fmean(half[name] for each in found for half in each.halves) for name in ("ece", "nll")}}
