"""What the commands share: how they answer a mistake, in one line and with status 2."""
import argparse

MISTAKES = (ValueError, TypeError, KeyError, OSError, AssertionError)  # of the user's, in set-up


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str):
        self.exit(2, f"error: {message} (--help lists the options)\n")


def one_line(error: Exception) -> str:
    """What an error says, without line breaks."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(message).split()) or type(error).__name__
