"""CoOp's entry: `python train.py --trainer P2C ...`, see p2c/cli/train.py."""
from p2c import compat
from p2c.utils.console import MISTAKE, Parser, one_line

try:
    compat.choose_engine()
    from p2c.cli.train import run_as_coop
except compat.EngineError as error:
    Parser().exit(MISTAKE, f"error: {one_line(error)}\n")

if __name__ == "__main__":
    run_as_coop()
