"""Detection of silent damage: torch's readers skip the checksums of an archive. Needs only the standard library."""
import os
import zipfile


def check_archive(path: str | os.PathLike) -> None:
    """Compare the parts of a zip archive, such as torch.save writes, with their checksums.

    Other files pass, and so does an archive without checksums (torch.serialization.set_crc32_options).

    Raises:
        BadZipFile: a part is damaged; a part that cannot be read may raise other errors.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(entry.CRC for entry in archive.infolist()) and (name := archive.testzip()):
            raise zipfile.BadZipFile(f"its part {name} is damaged: its checksum differs")
