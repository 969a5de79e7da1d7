"""Unpacking: plain files and folders inside the folder, or nothing; every trick of a hostile archive is refused."""
import os
import stat
import tarfile
import zipfile

import pytest
from download_fixtures import files_below, start, tar_of, until, zip_of
from messages import naming

from p2c.datasets.trees import draft
from p2c.download import extract as extracting
from p2c.download import places
from p2c.download.extract import extract
from p2c.download.fetch import InvalidFile

FILES = {"top/a.jpg": b"a" * 1000, "top/sub/b c.jpg": b"b" * 2000, "top/\u00e9.txt": b""}


def unpack(tmp_path, content, name="archive", inner=""):
    """What is in the folder afterwards."""
    archive, folder = tmp_path / name, tmp_path / "here" / "draft"
    archive.write_bytes(content)
    folder.mkdir(parents=True)
    extract(archive, folder, inner)
    return files_below(folder)


def entry(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_entry(name, mode=0o644, system=3):
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    info.external_attr, info.create_system = mode << 16, system
    return info


@pytest.mark.parametrize("content", [tar_of(FILES), tar_of(FILES, ""), tar_of(FILES, "bz2"), tar_of(FILES, "xz"),
                                     zip_of(FILES)], ids=["gz", "plain tar", "bz2", "xz", "zip"])
@pytest.mark.parametrize("name", ["images.tar.gz", "images.zip"])
def test_what_an_archive_is_its_content_tells(tmp_path, content, name):
    assert unpack(tmp_path, content, name) == FILES


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "top/../../evil", "top/..", "C:\\evil", "C:/evil",
                                  "top/D:evil", "..\\evil", "top\\evil", "\\\\host\\share\\evil"])
@pytest.mark.parametrize("pack", [tar_of, lambda files: zip_of({zip_entry(name): files[name] for name in files})],
                         ids=["tar", "zip"])
def test_an_archive_with_a_name_that_leads_out_is_refused_naming_it(tmp_path, name, pack):
    with pytest.raises(InvalidFile) as error:
        unpack(tmp_path, pack({"top/a.jpg": b"a", name: b"evil"}))
    assert repr(name) in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["archive", "here"] and os.listdir(tmp_path / "here") == ["draft"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../../secret", "..\\secret", "C:/secret"])
def test_a_link_out_of_the_folder_refuses_the_archive(tmp_path, kind, target):
    with pytest.raises(InvalidFile, match=naming("top/link", "out")):
        unpack(tmp_path, tar_of({entry("top/link", kind, target): None}))


def test_a_link_out_of_the_folder_in_a_zip_refuses_the_archive(tmp_path):
    with pytest.raises(InvalidFile, match=naming("top/link", "out")):
        unpack(tmp_path, zip_of({zip_entry("top/link", stat.S_IFLNK | 0o777): b"../../secret"}))


def test_links_within_become_copies_and_no_link_is_made(tmp_path):
    """A link to a folder that a later member is written through is the classic way out."""
    links = {entry("top/sub/link.jpg", tarfile.SYMTYPE, "../a.jpg"): None,
             entry("top/hard.jpg", tarfile.LNKTYPE, "top/a.jpg"): None, entry("here", tarfile.SYMTYPE, "."): None,
             entry("here/up", tarfile.SYMTYPE, ".."): None, entry("up2", tarfile.SYMTYPE, "here/up"): None,
             "up2/evil": b"evil"}
    found = unpack(tmp_path, tar_of({"top/a.jpg": b"a", **links}))
    assert found == {"top/a.jpg": b"a", "top/sub/link.jpg": b"a", "top/hard.jpg": b"a", "up2/evil": b"evil"}
    draft = tmp_path / "here" / "draft"
    assert not any(path.is_symlink() for path in draft.rglob("*")) and os.listdir(tmp_path / "here") == ["draft"]


def test_zip_links_within_become_copies(tmp_path):
    found = unpack(tmp_path, zip_of({"top/a.jpg": b"a", zip_entry("top/b.jpg", stat.S_IFLNK | 0o777): b"a.jpg"}))
    assert found == {"top/a.jpg": b"a", "top/b.jpg": b"a"}


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_refuse_the_archive(tmp_path, kind):
    with pytest.raises(InvalidFile, match="'top/device'"):
        unpack(tmp_path, tar_of({entry("top/device", kind): None}))
    (tmp_path / "zip").mkdir()
    with pytest.raises(InvalidFile, match="'top/device'"):
        unpack(tmp_path / "zip", zip_of({zip_entry("top/device", stat.S_IFCHR | 0o644): b""}))


def test_owners_modes_and_other_rights_of_members_are_not_taken_over(tmp_path):
    info = tarfile.TarInfo("top/a.jpg")
    info.mode, info.uid = 0o6777, 0
    unpack(tmp_path, tar_of({info: None}))
    assert stat.S_IMODE(os.stat(tmp_path / "here/draft/top/a.jpg").st_mode) & 0o7111 == 0


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(extracting, "SLACK", 10_000)
    content = tar_of({f"top/{index}": bytes(100_000) for index in range(20)})  # 2 MB of zeros in a few kB
    with pytest.raises(InvalidFile, match="'top/0'"):
        unpack(tmp_path, content)
    assert sum(len(file) for file in files_below(tmp_path / "here").values()) < 100_000


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(extracting, "MEMBERS", 10)
    with pytest.raises(InvalidFile, match="more than 10 files"):
        unpack(tmp_path, zip_of({f"{index}": b"" for index in range(20)}))


def test_copies_of_links_count_towards_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(extracting, "SLACK", 0)
    links = {entry(f"top/{index}", tarfile.LNKTYPE, "top/a"): None for index in range(100)}
    with pytest.raises(InvalidFile, match="unpacks to more"):
        unpack(tmp_path, tar_of({"top/a": os.urandom(50_000), **links}))


def test_a_disk_that_is_too_full_is_reported_before_unpacking(tmp_path, monkeypatch):
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: places.shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(places.NoSpace, match="make room"):
        unpack(tmp_path, tar_of(FILES))
    assert files_below(tmp_path / "here") == {}


@pytest.mark.parametrize("content", [
    tar_of({"a": os.urandom(5000)})[:3000], tar_of({"a": os.urandom(5000)}, "")[:3000],
    zip_of({"a": os.urandom(5000)})[:3000], zip_of({"a": b"a" * 5000}).replace(b"a" * 4000, b"b" * 4000),
    tar_of({"a": b"a" * 5000})[:-8] + bytes(8), b"neither tar nor zip" * 100,
    tar_of({"a": b"", "a/b": b""}),
], ids=["gz cut", "tar cut", "zip cut", "zip checksum", "gz checksum", "no archive", "file and folder"])
def test_damaged_archives_are_refused(tmp_path, content):
    with pytest.raises(InvalidFile, match="damaged"):
        unpack(tmp_path, content)


def test_what_file_managers_add_is_dropped(tmp_path):
    junk = ("__MACOSX/top/._a.jpg", "top/.DS_Store", "top/._a.jpg", "top/Thumbs.db", "desktop.ini")
    assert unpack(tmp_path, zip_of({**FILES, **dict.fromkeys(junk, b"junk")})) == FILES


def test_an_unsafe_name_is_not_excused_by_being_junk(tmp_path):
    with pytest.raises(InvalidFile):
        unpack(tmp_path, tar_of({"../._evil": b""}))


@pytest.mark.parametrize("pack", [lambda files: tar_of(files, ""), zip_of], ids=["tar", "zip"])
def test_archives_in_an_archive_are_unpacked_into_folders_of_their_names(tmp_path, pack):
    inner = {"n01.tar": tar_of({"x.JPEG": b"x"}, ""), "n02.tar.gz": tar_of({"y.JPEG": b"y"})}
    assert unpack(tmp_path, pack({**inner, "other.tar": b"kept"}), inner="n*") == {
        "n01/x.JPEG": b"x", "n02/y.JPEG": b"y", "other.tar": b"kept"}


def test_an_archive_in_an_archive_cannot_leave_either(tmp_path):
    with pytest.raises(InvalidFile, match="leads out"):
        unpack(tmp_path, tar_of({"n01.tar": tar_of({"../evil": b""}, "")}, ""), inner="n*")


# Places

def test_a_target_in_the_way_is_kept_under_another_name(tmp_path):
    for name, content in (("images", b"mine"), ("images.old-1", b"older"), ("new", b"new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(content)
    places.move_into_place(tmp_path / "new", tmp_path / "images")
    assert files_below(tmp_path) == {"images/x": b"new", "images.old-1/x": b"older", "images.old-2/x": b"mine"}


def test_an_empty_folder_or_the_same_file_is_not_in_the_way(tmp_path):
    (tmp_path / "images").mkdir()
    for folder in ("draft/images", "draft"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "list.txt").write_bytes(b"list")
    (tmp_path / "list.txt").write_bytes(b"list")
    places.move_into_place(tmp_path / "draft/images", tmp_path / "images")
    places.move_into_place(tmp_path / "draft/list.txt", tmp_path / "list.txt")
    assert sorted(os.listdir(tmp_path)) == ["draft", "images", "list.txt"]


def test_a_link_to_nothing_in_the_way_is_kept(tmp_path):
    (tmp_path / "images").symlink_to(tmp_path / "gone")
    (tmp_path / "new").mkdir()
    places.move_into_place(tmp_path / "new", tmp_path / "images")
    assert (tmp_path / "images").is_dir() and (tmp_path / "images.old-1").is_symlink()


def test_nothing_of_a_users_is_taken_for_a_draft(tmp_path):
    for name in ("images", ".hidden", ".images.backup", ".images.0123456789abcdef"):
        (tmp_path / name).mkdir()
    (tmp_path / f".file.{'0' * 32}").touch()
    with draft(tmp_path / "images") as work:
        (tmp_path / f".link.{'0' * 32}").symlink_to(work)
        assert places.drafts_in(tmp_path) == [work]
    assert places.drafts_in(tmp_path) == [] == places.drafts_in(tmp_path / "nothing")


def test_a_killed_process_holds_no_lock(tmp_path):
    def hold():
        with places.locked(tmp_path):
            (tmp_path / "held").touch()
            until(lambda: False)

    process = start(hold)
    until((tmp_path / "held").exists)
    process.kill()
    process.join()
    with places.locked(tmp_path):
        pass
