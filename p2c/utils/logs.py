"""The loggers of this package's modules.

Importing real Dassl disables all logging up to level WARNING in the process. Our messages must still appear when Dassl
runs our trainers, and nothing may change for other packages.
"""
import logging


class PackageLogger(logging.Logger):
    """An ordinary logger, until `speak_despite_disable` makes all loggers of this class ignore `logging.disable`."""

    despite_disable = False

    def isEnabledFor(self, level: int) -> bool:
        if PackageLogger.despite_disable:
            return not self.disabled and level >= self.getEffectiveLevel()
        return super().isEnabledFor(level)


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module, as `logging.getLogger` does."""
    logger = logging.getLogger(name)
    logger.__class__ = PackageLogger
    return logger


def speak_despite_disable() -> None:
    """Let this package's loggers emit messages even if logging is disabled."""
    PackageLogger.despite_disable = True
