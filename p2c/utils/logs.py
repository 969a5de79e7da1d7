"""The loggers of this package's modules.

Importing real Dassl disables logging up to warnings for the whole process, and prints its own lines. Where it runs our
trainers, ours must be seen as well, without changing anything for others.
"""
import logging


class PackageLogger(logging.Logger):
    """An ordinary logger, until `speak_despite_disable` makes all of them deaf to `logging.disable`."""

    despite_disable = False

    def isEnabledFor(self, level: int) -> bool:
        if PackageLogger.despite_disable:
            return not self.disabled and level >= self.getEffectiveLevel()
        return super().isEnabledFor(level)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module, as logging.getLogger gives it."""
    logger = logging.getLogger(name)
    logger.__class__ = PackageLogger
    return logger


def speak_despite_disable() -> None:
    """Let this package's lines through although logging is disabled."""
    PackageLogger.despite_disable = True
