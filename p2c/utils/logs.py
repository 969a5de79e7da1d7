"""The loggers of this package's modules.

Importing real Dassl disables logging up to warnings for the whole process. When Dassl runs our trainers, our messages
must still appear, without any change for other packages.
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
    """Let this package's messages through even if logging is disabled."""
    PackageLogger.despite_disable = True
