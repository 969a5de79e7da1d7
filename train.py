"""Train or test one model, with CoOp's command line.

    python train.py --trainer P2C --root DATA --seed 1 --output-dir OUT \\
        --dataset-config-file configs/datasets/oxford_pets.yaml \\
        --config-file configs/trainers/P2C/vit_b16_c2_ep5_batch4_2ctx.yaml DATASET.NUM_SHOTS 16

On several GPUs, with the same global batch:  torchrun --nproc-per-node 4 train.py ...

Exit status: 0 finished now or before, 1 failed, 2 the user's mistake, 75 interrupted and resumable.
"""
import argparse
import contextlib
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

import torch

from p2c import compat
from p2c.config import check_settings, extend_cfg
from p2c.utils.console import DONE as FINISHED
from p2c.utils.console import FAILED, INTERRUPTED, MISTAKE, MISTAKES, Parser, escape_unprintable, one_line

try:
    compat.choose_engine()
    from p2c import registry
    from p2c.engine.checkpoint import CannotResume
    from p2c.engine.config import check_values
    from p2c.engine.distributed import is_main, join, launched, leave, rank
    from p2c.engine.files import DiskFull, remove_leftovers
    from p2c.engine.lock import folder_lock
    from p2c.engine.logger import Logger, print_details, setup_logger, warnings_on_terminal
    from p2c.engine.results import changed_keys, read_results, write_started
    from p2c.engine.run import Run
    from p2c.engine.seeds import run_seed, set_random_seed
    from p2c.engine.trainer import Stopped
    from p2c.engine.utils import collect_env_info
    from p2c.framework import build_trainer, get_cfg_default
    from p2c.merging import merge_file, merge_pairs, merge_values, warn_of_unread
except compat.EngineError as error:
    Parser().exit(2, f"error: {one_line(error)}\n")

FAILURES = (FloatingPointError, OSError, ValueError, torch.OutOfMemoryError)  # in training, without a traceback

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 2  # seconds within which signals count as one: Ctrl-C arrives twice, directly and through the scripts
KEY = re.compile(r"[A-Z]+(\.[A-Z0-9_]+)+")


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse CoOp's options and the KEY VALUE pairs after them."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--root", help="folder that holds all datasets")
    parser.add_argument("--output-dir", help="folder of this run")
    parser.add_argument("--resume", help="folder of a run to continue from")
    parser.add_argument("--seed", type=int, help="seed of all randomness; negative: a seed is drawn and reported")
    parser.add_argument("--source-domains", nargs="+", help="names of source domains")
    parser.add_argument("--target-domains", nargs="+", help="names of target domains")
    parser.add_argument("--transforms", nargs="+", help="names of image transforms")
    parser.add_argument("--config-file", help="YAML file of the method")
    parser.add_argument("--dataset-config-file", help="YAML file of the dataset")
    parser.add_argument("--trainer", help="name of the trainer")
    parser.add_argument("--backbone", help="name of the backbone")
    parser.add_argument("--head", help="name of the head")
    parser.add_argument("--eval-only", action="store_true", help="test a trained model")
    parser.add_argument("--model-dir", default="", help="folder of the run to test with --eval-only")
    parser.add_argument("--load-epoch", type=int,
                        help="epoch to test; default: the best on validation data, or the last")
    parser.add_argument("--plugin", metavar="MODULE", help="module that registers your own trainers or datasets")
    parser.add_argument("--no-train", action="store_true", help="build everything and stop")
    parser.add_argument("--resume-anyway", action="store_true",
                        help="continue a run with another configuration or other classes; results.json records it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings that override the files; "
                        "`python -m p2c config settings` lists them")
    args = parser.parse_args(argv)
    if args.opts[:1] == ["--"]:  # ends the values of an option such as --transforms
        del args.opts[0]
    if glued := [word for word in args.opts if KEY.fullmatch(word.partition("=")[0]) and "=" in word]:
        key, _, value = glued[0].partition("=")
        parser.error(f"{glued[0]} has an equals sign; write {key} {value}")
    check_options(parser, args)
    if late := [word for word in args.opts if word.startswith("--")]:
        parser.error(f"{late[0]} comes after KEY VALUE pairs; options must come before them")
    lists = (args.source_domains, args.target_domains, args.transforms)
    if swallowed := [word for words in lists for word in words or () if KEY.fullmatch(word.partition("=")[0])]:
        parser.error(f"{swallowed[0]} was taken for a value of the option before it; put -- before KEY VALUE pairs")
    return args


def check_options(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse an option that the mode would ignore."""
    test_options = {"--model-dir": args.model_dir, "--load-epoch": args.load_epoch is not None}
    training_options = {"--resume": args.resume, "--resume-anyway": args.resume_anyway}
    if not args.eval_only and (given := [option for option, value in test_options.items() if value]):
        parser.error(f"{given[0]} says which model to test; give --eval-only with it (--resume continues a training)")
    if args.eval_only and (given := [option for option, value in training_options.items() if value]):
        parser.error(f"{given[0]} is for training, and --eval-only does not train; leave out one of the two")
    if args.load_epoch is not None and not args.model_dir:
        parser.error("--load-epoch chooses from a run's checkpoints; give the run's folder with --model-dir")


OPTIONS = {  # command-line option -> key that it sets
    "root": "DATASET.ROOT",
    "output_dir": "OUTPUT_DIR",
    "resume": "RESUME",
    "seed": "SEED",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "trainer": "TRAINER.NAME",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
    "plugin": "PLUGIN",
}


def setup_cfg(args: argparse.Namespace):
    """Return the frozen configuration, and the keys that the files and the pairs give.

    Defaults, our keys, dataset file, method file, options and KEY VALUE pairs are merged in this order; later ones win.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
    if args.plugin:
        registry.load_plugin(args.plugin, cfg)
    given = [key for path in (args.dataset_config_file, args.config_file) if path for key in merge_file(cfg, path)]
    options = {key: getattr(args, option) for option, key in OPTIONS.items()}
    merge_values(cfg, {key: value for key, value in options.items() if value is not None and value != ""})
    given += merge_pairs(cfg, args.opts)
    check_values(cfg)
    check_settings(cfg)
    if cfg.PLUGIN != (args.plugin or ""):
        raise ValueError("PLUGIN records the module of --plugin; give --plugin instead")
    if launched() and compat.engine() == compat.DASSL:
        raise ValueError("Real Dassl trains in one process; start it without torchrun, or unset P2C_ENGINE")
    join(cfg.USE_CUDA)
    if not is_main():
        sys.stdout = open(os.devnull, "w")
    if cfg.SEED < 0:
        cfg.SEED = run_seed(cfg)
    cfg.freeze()
    registry.get_trainer(cfg.TRAINER.NAME)
    registry.get_dataset(cfg.DATASET.NAME)
    return cfg, given


def describe_task(args: argparse.Namespace) -> dict:
    """Return what identifies this run beside its configuration: its mode, and the model that an evaluation tests."""
    if not args.eval_only:
        return {"mode": "train"}
    trained = read_results(args.model_dir) if args.model_dir else None
    if trained and not trained["finished"] and args.load_epoch is None:
        raise ValueError(f"The training in {args.model_dir} is not finished; finish it first, or choose a saved epoch "
                         "with --load-epoch")
    return {"mode": "eval", "load_epoch": args.load_epoch, "model_dir": args.model_dir,
            "model_seconds": trained and trained.get("seconds")}


def finished_before(cfg, task: dict, anyway: bool) -> bool:
    """Return whether this run is finished in OUTPUT_DIR. Raise ValueError if the folder belongs to another run.

    With `anyway`, a training there may change its settings.
    """
    results = read_results(cfg.OUTPUT_DIR)
    if results is None:
        return False
    task, results = {**task, "engine": compat.engine()}, {"engine": compat.OURS, **results}
    known = [key for key in task if key != "model_dir" or task["model_seconds"] is None]  # the folder may have moved
    changed = [key for key in known if results.get(key) != task[key]]
    length_matters = getattr(registry.get_trainer(cfg.TRAINER.NAME), "length_matters", True)
    settings = changed_keys(results["config"], cfg, length_matters)
    if not changed and settings and anyway and task["mode"] == "train":
        return False
    changed += settings
    if changed == ["model_seconds"]:
        raise ValueError(f"{cfg.OUTPUT_DIR} holds the test of an earlier training in {task['model_dir']}; delete that "
                         "folder to test the new one")
    if changed:
        raise ValueError(f"{cfg.OUTPUT_DIR} holds a run with other settings ({', '.join(changed)}); choose another "
                         "--output-dir, or delete that folder")
    return results["finished"] and not changed_keys(results["config"], cfg)  # a difference left here: more epochs


def run(args: argparse.Namespace) -> int:
    """Set up and run, and return the exit status."""
    with contextlib.ExitStack() as held:
        try:
            return set_up_and_run(held, args)
        except Stopped as stopped:
            ignore_signals()
            say(f"{stopped}; the same command continues from there (give --seed if it was drawn)")
            return INTERRUPTED
        except KeyboardInterrupt:
            say("Interrupted; the same command continues from the last checkpoint (give --seed if it was drawn)")
            return INTERRUPTED
        finally:
            interrupt.trainer, interrupt.asked = None, -math.inf
            leave()


def set_up_and_run(held: contextlib.ExitStack, args: argparse.Namespace) -> int:
    """Set up and run, and return the exit status: MISTAKE for an error in the set-up, FAILED for a later one.

    `held` gets the lock of the output folder.
    """
    try:
        cfg, given = setup_cfg(args)
        task = describe_task(args)
        died = ""
        done = finished_before(cfg, task, args.resume_anyway)
        if not done and is_main():
            died = held.enter_context(folder_lock(cfg.OUTPUT_DIR))
            done = finished_before(cfg, task, args.resume_anyway)  # perhaps by the process that held the lock
        if done:
            print(f"Finished before, see {Path(cfg.OUTPUT_DIR) / 'results.json'}; delete {cfg.OUTPUT_DIR} to repeat "
                  "the run")
            return FINISHED
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
        setup_logger(cfg.OUTPUT_DIR if is_main() else None)
        if died:
            print(died)
        torch.backends.cudnn.benchmark = torch.cuda.is_available() and cfg.USE_CUDA
        print_settings(args, cfg)
        warn_of_unread(given, registry.get_trainer(cfg.TRAINER.NAME))
        with warnings_on_terminal():
            trainer = build_trainer(cfg)
        recorded = isinstance(trainer, Run)  # a foreign trainer on real Dassl writes only its log
        if recorded:
            trainer.check_validation(training=not args.eval_only)
        if is_main():
            for folder in ("", "tensorboard", *trainer.get_model_names()):
                remove_leftovers(os.path.join(cfg.OUTPUT_DIR, folder))
        if args.eval_only:
            if trainer.get_model_names() and not args.model_dir:
                raise ValueError(f"--eval-only tests a trained {cfg.TRAINER.NAME}; give its folder with --model-dir")
            if args.model_dir and not trainer.get_model_names():
                raise ValueError(f"{cfg.TRAINER.NAME} has nothing to load; leave out --model-dir")
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
    except DiskFull as error:
        return report(error, args.debug, FAILED)
    except (*MISTAKES, torch.OutOfMemoryError) as error:
        return report(error, args.debug, MISTAKE)
    if args.no_train:
        return FINISHED
    try:
        if args.eval_only:
            if recorded:
                write_started(cfg, cfg.OUTPUT_DIR, started=trainer.started, dassl=trainer.dassl_version, **task)
                trainer.introduce(training=False)
            trainer.test()
            if recorded:
                trainer.write_results(**task)
        else:
            if recorded:
                interrupt.trainer, trainer.resume_anyway = trainer, args.resume_anyway
            trainer.train()
    except CannotResume as error:
        return report(error, args.debug, MISTAKE)
    except FAILURES as error:
        return report(error, args.debug, FAILED)
    print(f"Results: {Path(cfg.OUTPUT_DIR) / ('results.json' if recorded else 'log.txt')}")
    return FINISHED


def print_settings(args: argparse.Namespace, cfg) -> None:
    """Print the arguments, the configuration and the environment, on a terminal only to the log file."""
    for title, lines in (("Arguments", [f"{key}: {value}" for key, value in sorted(vars(args).items())]),
                         ("Config", [str(cfg)])):
        stars = "*" * (len(title) + 6)
        print_details("\n".join([stars, f"** {title} **", stars, *lines]))
    print_details("Collecting env info ...")
    print_details(f"** System info **\n{collect_env_info()}\nEngine: {compat.describe()}\n")


def report(error: Exception, debug: bool, status: int) -> int:
    """Report an error in one line and return the status; with `debug`, raise the error instead."""
    if debug:
        raise error
    say(f"error: {one_line(error)}")
    return status


def say(line: str) -> None:
    """Write a line to stderr, and to the run's log file if there is one."""
    print(line if is_main() else f"[rank {rank()}] {line}", file=sys.stderr)
    if isinstance(sys.stdout, Logger):
        with contextlib.suppress(OSError):  # the line may be about a full disk
            sys.stdout.write_file(f"{line}\n")


def ignore_signals() -> None:
    """Ignore further signals while the run ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Interrupt:
    """The signal handler: it asks a training that can save its position to stop, and ends everything else at once.

    A second signal ends such a training at once, too.
    """

    def __init__(self):
        self.trainer = None
        self.asked = -math.inf  # time of the request to stop

    def __call__(self, signum, frame) -> None:
        now = time.monotonic()
        if now - self.asked < TOGETHER and self.trainer is not None:
            return
        if self.asked == -math.inf and self.trainer is not None and self.trainer.ask_to_stop():
            self.asked = now
            return
        ignore_signals()
        raise KeyboardInterrupt


interrupt = Interrupt()


def main() -> None:
    escape_unprintable()
    for number in SIGNALS:
        signal.signal(number, interrupt)
    sys.exit(run(parse_args(sys.argv[1:])))


if __name__ == "__main__":
    main()
