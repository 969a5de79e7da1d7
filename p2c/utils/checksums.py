"""Damage that does not show: torch's readers skip the checksums of an archive. Needs the standard library alone."""
import os
import zipfile


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
