"""Compare a message by what it must name, whatever its wording."""
import re


def naming(*parts) -> str:
    """A pattern, for `match` and re.search, of a message that has each part: a key, a value, a path, a remedy."""
    return "(?s)" + "".join(f"(?=.*{re.escape(str(part))})" for part in parts)
