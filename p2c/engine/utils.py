"""The contents of dassl.utils."""
import PIL
from torch.utils import collect_env

from p2c.engine.checkpoint import load_checkpoint, load_pretrained_weights, resume_from_checkpoint, save_checkpoint
from p2c.engine.files import (
    check_isfile,
    download_url,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    write_json,
)
from p2c.engine.layers import count_num_param, init_network_weights, open_all_layers, open_specified_layers
from p2c.engine.logger import Logger, setup_logger
from p2c.engine.meters import AverageMeter, MetricMeter
from p2c.engine.registry import Registry, check_availability, get_most_similar_str_to_a_from_b
from p2c.engine.seeds import set_random_seed

__all__ = [
    "AverageMeter", "Logger", "MetricMeter", "Registry", "check_availability", "check_isfile", "collect_env_info",
    "count_num_param", "download_url", "get_most_similar_str_to_a_from_b", "init_network_weights", "listdir_nohidden",
    "load_checkpoint", "load_pretrained_weights", "mkdir_if_missing", "open_all_layers", "open_specified_layers",
    "read_image", "read_json", "resume_from_checkpoint", "save_checkpoint", "set_random_seed", "setup_logger",
    "tolist_if_not", "write_json",
]


def collect_env_info() -> str:
    """Return a report on torch, the drivers and Pillow; takes seconds, since it runs external commands."""
    return f"{collect_env.get_pretty_env_info()}\n        Pillow ({PIL.__version__})"


def tolist_if_not(x) -> list:
    """Return a list unchanged, anything else as the only item of a list."""
    return x if isinstance(x, list) else [x]
