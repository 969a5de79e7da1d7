"""Damage that does not show: torch's readers skip the checksums of an archive, and JSON has none. Needs the standard
library alone."""
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping

KEY = "sha256"


def check_archive(path: str | os.PathLike) -> None:
    """Compare the parts of a zip archive, as torch.save and torch.jit.save write them, with their checksums.

    Other files pass, and so does an archive without checksums (torch.serialization.set_crc32_options).

    Raises:
        BadZipFile: a part is damaged; other errors are of an archive whose parts cannot be read.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(entry.CRC for entry in archive.infolist()) and (name := archive.testzip()):
            raise zipfile.BadZipFile(f"its part {name} is damaged: the checksum is another")


def sealed(record: Mapping) -> dict:
    """A record for a JSON file, with a digest of all else in it."""
    return {**record, KEY: _digest(record)}


def is_whole(record: Mapping) -> bool:
    """Whether a record from a JSON file is as it was sealed, or never was."""
    return KEY not in record or record[KEY] == _digest(record)


def _digest(record: Mapping) -> str:
    content = json.loads(json.dumps({key: value for key, value in record.items() if key != KEY}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
