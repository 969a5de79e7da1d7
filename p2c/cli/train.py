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
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from p2c import compat, registry
from p2c.config import check_settings, extend_cfg
from p2c.engine.checkpoint import CannotResume
from p2c.engine.config import check_values
from p2c.engine.distributed import is_main, join, launched, leave, rank
from p2c.engine.evaluation import CONFUSION
from p2c.engine.files import DiskFull, remove_leftovers
from p2c.engine.lock import folder_lock
from p2c.engine.logger import Logger, log_to_file, log_to_stdout, setup_logger, warnings_on_terminal
from p2c.engine.results import changed_keys, read_results, write_started
from p2c.engine.run import Run
from p2c.engine.seeds import preserve_random_state, run_seed, set_random_seed
from p2c.engine.trainer import Stopped
from p2c.engine.utils import collect_env_info
from p2c.framework import build_trainer, get_cfg_default
from p2c.grid.fewshot import plan
from p2c.inference.predictor import Predictor
from p2c.merging import merge_file, merge_pairs, merge_values, warn_of_unread
from p2c.utils.console import DONE as FINISHED
from p2c.utils.console import (
    FAILED,
    INTERRUPTED,
    MISTAKE,
    MISTAKES,
    Parser,
    ReaderGone,
    command_parser,
    exit_on,
    one_line,
    prepare_streams,
    whole,
)
from p2c.utils.logs import get_logger

log = get_logger(__name__)

FAILURES = (FloatingPointError, OSError, ValueError, torch.OutOfMemoryError)  # in training, without a traceback

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 2  # seconds within which signals count as one: Ctrl-C arrives twice, directly and through the scripts
KEY = re.compile(r"[A-Z]+(\.[A-Z0-9_]+)+")


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse CoOp's options and the KEY VALUE pairs after them."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--root", help="folder that holds all datasets (default: $DATA, else data/)")
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
    keep_reading(cfg, args.model_dir)
    registry.get_trainer(cfg.TRAINER.NAME)
    dataset = registry.get_dataset(cfg.DATASET.NAME)
    if not cfg.DATASET.ROOT:
        if getattr(dataset, "folder", None) == "":  # the root itself has the images
            raise ValueError(f"{cfg.DATASET.NAME} reads a folder of your images; give its path as --root")
        cfg.DATASET.ROOT = os.environ.get("DATA") or "data"
    cfg.freeze()
    return cfg, given


def keep_reading(cfg, model_dir: str) -> None:
    """Set INPUT.AS_SHOWN to False if a run that is continued or tested is older than it, or real Dassl reads images."""
    if not cfg.INPUT.AS_SHOWN:
        return
    records = {folder: read_results(folder) for folder in (cfg.OUTPUT_DIR, cfg.RESUME, model_dir) if folder}
    older = [f"the older run in {folder}" for folder, record in records.items()
             if record and "AS_SHOWN" not in record["config"].get("INPUT", {})]
    if reader := "real Dassl" if compat.engine() == compat.DASSL else "".join(older[:1]):
        cfg.INPUT.AS_SHOWN = False
        say(f"Images are read as they are stored (INPUT.AS_SHOWN False), as by {reader}")


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
    longer = changed_keys(results["config"], cfg)  # a difference left here: more epochs
    return results["finished"] and not longer and not lacks_outputs(cfg, results)


def lacks_outputs(cfg, results: dict) -> bool:
    """Return whether a finished run was tested without an output that is asked for now."""
    settings = cfg.TEST
    matrix = settings.COMPUTE_CMAT and not os.path.isfile(os.path.join(cfg.OUTPUT_DIR, CONFUSION))
    classes = settings.PER_CLASS_RESULT and "perclass_accuracy" not in results.get("metrics", {})
    return not settings.NO_TEST and (matrix or classes)


def run(args: argparse.Namespace) -> int:
    """Set up and run, and return the exit status."""
    log_to_stdout()
    with contextlib.ExitStack() as held:
        try:
            return set_up_and_run(held, args)
        except Stopped as stopped:
            ignore_signals()
            say(f"{stopped}; the same command continues from there (give --seed if it was drawn)")
            return INTERRUPTED
        except (KeyboardInterrupt, ReaderGone):
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
        ready = set_up(held, args, setup_logger)
    except DiskFull as error:
        return report(error, args.debug, FAILED)
    except (*MISTAKES, torch.OutOfMemoryError) as error:
        return report(error, args.debug, MISTAKE)
    if ready is None or args.no_train:
        return FINISHED
    try:
        train_or_test(args, *ready)
    except CannotResume as error:
        return report(error, args.debug, MISTAKE)
    except FAILURES as error:
        return report(error, args.debug, FAILED)
    return FINISHED


def set_up(held: contextlib.ExitStack, args: argparse.Namespace, open_log: Callable[[str | None], None]) \
        -> tuple[CfgNode, dict, Any] | None:
    """Return the configuration, the task and the trainer, ready to run, or None if the run is finished already.

    `held` gets the lock of the output folder; `open_log` starts the log of a folder, in processes without one of None.
    """
    cfg, given = setup_cfg(args)
    task = describe_task(args)
    died = ""
    done = finished_before(cfg, task, args.resume_anyway)
    if not done and is_main():
        died = held.enter_context(folder_lock(cfg.OUTPUT_DIR))
        done = finished_before(cfg, task, args.resume_anyway)  # perhaps by the process that held the lock
    if done:
        log.info(f"Finished before, see {Path(cfg.OUTPUT_DIR) / 'results.json'}; delete {cfg.OUTPUT_DIR} to repeat "
                 "the run")
        return None
    log.info(f"Setting fixed seed: {cfg.SEED}")
    set_random_seed(cfg.SEED)
    open_log(cfg.OUTPUT_DIR if is_main() else None)
    if died:
        log.info(died)
    torch.backends.cudnn.benchmark = torch.cuda.is_available() and cfg.USE_CUDA
    with warnings_on_terminal():
        log_settings(args, cfg)
        warn_of_unread(given, registry.get_trainer(cfg.TRAINER.NAME))
        trainer = build_trainer(cfg)
    if isinstance(trainer, Run):
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
    return cfg, task, trainer


def train_or_test(args: argparse.Namespace, cfg: CfgNode, task: dict, trainer: Any) -> None:
    """Run what `set_up` returned to its end."""
    recorded = isinstance(trainer, Run)  # a foreign trainer on real Dassl writes only its log
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
    log.info(f"Results: {Path(cfg.OUTPUT_DIR) / ('results.json' if recorded else 'log.txt')}")


def log_settings(args: argparse.Namespace, cfg) -> None:
    """Log the arguments, the configuration and the environment."""
    for title, lines in (("Arguments", [f"{key}: {value}" for key, value in sorted(vars(args).items())]),
                         ("Config", [str(cfg)])):
        stars = "*" * (len(title) + 6)
        log.info("\n".join([stars, f"** {title} **", stars, *lines]))
    log.info("Collecting env info ...")
    log.info(f"** System info **\n{collect_env_info()}\nEngine: {compat.describe()}\n")


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


def handle_signals() -> None:
    """Let the signals that end a process interrupt the run."""
    for number in SIGNALS:
        signal.signal(number, interrupt)


def run_as_coop() -> None:
    """Run CoOp's command line, and exit with its status."""
    prepare_streams()
    handle_signals()
    sys.exit(run(parse_args(sys.argv[1:])))


# A run of few words

COMMAND = """\
Train on a folder of images, or on a dataset, and test.

    python -m p2c train photos/                       # P2C, 16 images per class
    python -m p2c train photos/ --method CoOp --shots 4 --backbone RN50
    python -m p2c train oxford_pets OPTIM.MAX_EPOCH 5

The run goes to output/DATA/METHOD/CONFIGURATION_16shots/seed1, where scripts/METHOD/few_shot.sh puts it too, with the
trainer's published few-shot settings; a folder's DATA has a checksum of its path. A finished run is not repeated, and
an interrupted one continues.

Exit status: 0 finished now or before, 1 failed, 2 the user's mistake, 75 interrupted and resumable.
"""
GIVEN = {  # settings that have an option, with which the folder's name fits
    "DATASET.NAME": "DATA", "DATASET.ROOT": "DATA", "TRAINER.NAME": "--method", "DATASET.NUM_SHOTS": "--shots",
    "SEED": "--seed", "MODEL.BACKBONE.NAME": "--backbone", "OUTPUT_DIR": "--output",
}
TOP_KEYS = ("OUTPUT_DIR", "RESUME", "SEED", "USE_CUDA", "VERBOSE")


def main(argv: Sequence[str]) -> int:
    """Run the command `p2c train`; return the exit status."""
    args = parse_command(argv)
    with exit_on(*MISTAKES, status=MISTAKE):
        check_pairs(args.pairs[::2])
        words = plan(args.data, args.method, args.shots, args.seed, args.backbone, args.output)
        run_args = parse_args([*words, *args.pairs])
    handle_signals()
    status = run(run_args)
    if status == FINISHED and is_main():
        log.info(f"Classify images with this run:  p2c predict {shlex.quote(run_args.output_dir)} IMAGES")
    return status


def parse_command(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options of `p2c train`; `pairs` are the words from the first key of a setting on."""
    parser = command_parser("train", COMMAND)
    parser.add_argument("data", metavar="DATA", help="a folder of images, a CSV or JSON split in one, or a dataset's "
                        "name; a folder of a dataset's name: ./NAME")
    parser.add_argument("--method", default="P2C", help="P2C (default), MaPLe, PromptSRC, CoOp, CoCoOp, VPT, IVLP or "
                        "ZeroshotCLIP")
    parser.add_argument("--shots", type=int, default=16, help="training images per class; -1: all (default: 16)")
    parser.add_argument("--seed", type=whole, default=1, help="seed of all randomness (default: 1)")
    parser.add_argument("--backbone", help="CLIP's architecture, such as ViT-B/32; default: ViT-B/16, for the dataset "
                        "shapes tiny-shapes")
    parser.add_argument("--output", metavar="FOLDER", help="folder of this run")
    parser.epilog = "KEY VALUE pairs after the options are settings; `python -m p2c config settings` lists them."
    parser.usage = "%(prog)s DATA [options] [KEY VALUE ...]"
    keys = [index for index, word in enumerate(argv) if is_key(word.partition("=")[0])]
    end = keys[0] if keys else len(argv)
    args = parser.parse_args(argv[:end])
    args.pairs = list(argv[end:])
    return args


def is_key(word: str) -> bool:
    """Return whether a word is the key of a setting."""
    return word in TOP_KEYS or KEY.fullmatch(word) is not None


def check_pairs(keys: Iterable[str]) -> None:
    """Raise ValueError if a key's setting has an option or argument of its own."""
    for key in keys:
        if key in GIVEN:
            raise ValueError(f"{key} is also part of the folder's name; give {GIVEN[key]} instead")


def train(data: str | os.PathLike, *, method: str = "P2C", shots: int = 16, seed: int = 1,
          backbone: str | None = None, output: str | os.PathLike | None = None,
          settings: Mapping[str, Any] | None = None) -> Predictor:
    """Train on a folder of images, or on a dataset, test, and return the predictor of the run.

    A finished run is loaded, not repeated, and an interrupted one continues from its last checkpoint. Nothing is
    printed; the logger "p2c" tells the progress at level INFO, and log.txt in the run's folder holds it.

    Args:
        data: a folder of images, a CSV or JSON split in one, or the name of a dataset; see docs/own_data.md.
        method: the name of a trainer, such as "P2C", "CoOp" or "ZeroshotCLIP".
        shots: training images per class; -1: all.
        seed: seed of all randomness.
        backbone: CLIP's architecture, such as "ViT-B/32"; None: that of the method's configuration, or tiny-shapes for
            the dataset "shapes".
        output: folder of the run; None: output/DATA/METHOD/CONFIGURATION_16shots/seed1 and the like, as `p2c train`.
        settings: dotted keys of docs/configuration.md and their values, such as {"OPTIM.MAX_EPOCH": 5}.

    Raises:
        FileNotFoundError: there is no such data, or CLIP's weights are missing.
        ValueError: an argument is unknown or invalid, or the folder holds another run or is in use.
        FloatingPointError: a loss was infinite or NaN.
    """
    settings = dict(settings or {})
    check_pairs(settings)
    args = parse_args(plan(data, method, shots, seed, backbone, output))
    for key, value in settings.items():
        args.opts += [key, value if isinstance(value, str) else repr(value)]
    with contextlib.ExitStack() as held, preserve_random_state():
        def open_log(folder: str | None) -> None:
            if folder is not None:
                held.enter_context(log_to_file(folder))

        try:
            if ready := set_up(held, args, open_log):
                train_or_test(args, *ready)
        finally:
            interrupt.trainer = None
            leave()
    return Predictor.from_run(args.output_dir)
