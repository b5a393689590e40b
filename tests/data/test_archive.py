"""Archives that lie or are damaged (rows 23, 24 and 25 of the list of faults), read as a stream."""

from __future__ import annotations

import gzip
import io
import random
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from svhn_archives import Member, archive, member, members_of, photo, struct_of

from attn_cli.data.sources import archive as module
from attn_cli.data.sources import tarball
from attn_cli.data.sources.archive import Archive, Folder
from attn_cli.errors import Refused

PHOTOS = [photo(i) for i in range(12)]
SECRET = b"SECRET"


@pytest.fixture(autouse=True)
def nothing_is_unpacked(tmp_path: Path) -> Iterator[None]:
    """Whatever an archive holds, no file appears but the archive."""
    yield
    assert {p.name for p in tmp_path.rglob("*")} <= {"train.tar.gz", "outside.png", "a", "train"}


def scanned(path: Path) -> tuple[list[int], bytes]:
    struct = io.BytesIO()
    return Archive(path, "train").scan(struct.write), struct.getvalue()


def test_reads_what_was_written(tmp_path: Path) -> None:
    path = archive(tmp_path / "train.tar.gz", members_of("train", PHOTOS))
    source = Archive(path, "train")
    struct = io.BytesIO()
    numbers = source.scan(struct.write)
    assert numbers == sorted(range(1, 13), key=str) and struct.getvalue() == struct_of(PHOTOS)
    images = list(source.images())
    assert [number for number, _ in images] == numbers
    assert all(content == PHOTOS[number - 1].png(number) for number, content in images)


HOSTILE = [
    member("../train/1.png", SECRET),
    member("/train/1.png", SECRET),
    member("train/../1.png", SECRET),
    member("train/./1.png", SECRET),
    member("train/sub/1.png", SECRET),
    member("test/1.png", SECRET),
    member("1.png", SECRET),
    member("train/01.png", SECRET),
    member("train/1.PNG", SECRET),
    member("train/1.png\n", SECRET),
    member("train/._1.png", SECRET),
    member("train/99999999.png", SECRET),
    member("train/901.png", type=tarfile.SYMTYPE, linkname="../outside.png"),
    member("train/902.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    member("train/903.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    member("train/904.png", type=tarfile.BLKTYPE),
    member("train/905.png", type=tarfile.FIFOTYPE),
    member("train/906.png", type=tarfile.DIRTYPE),
    member("train/907.png", type=tarfile.CONTTYPE),
]


def test_only_known_regular_members_are_read(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(SECRET)
    mixed: list[Member] = []
    for i, one in enumerate(members_of("train", PHOTOS)):
        mixed += [one, HOSTILE[i % len(HOSTILE)], HOSTILE[(i + 9) % len(HOSTILE)]]
    path = archive(tmp_path / "train.tar.gz", [*HOSTILE, *mixed])
    source = Archive(path, "train")
    struct = io.BytesIO()
    assert sorted(source.scan(struct.write)) == list(range(1, 13)) and struct.getvalue() == struct_of(PHOTOS)
    assert SECRET not in b"".join(content for _, content in source.images())


def test_names_may_start_with_a_dot_and_long_headers_are_understood(tmp_path: Path) -> None:
    members = [(info, content) for info, content in members_of("train", PHOTOS)]
    for info, _ in members:
        info.name = f"./{info.name}"
        info.pax_headers = {"mtime": "1.5", "comment": "x" * 1000}
    path = archive(tmp_path / "train.tar.gz", members)
    assert sorted(scanned(path)[0]) == list(range(1, 13))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([member("train/3.png", b"x")], "3.png is there twice"),
        ([member("train/digitStruct.mat", b"x")], "digitStruct.mat is there twice"),
        ([member("./train/3.png", b"x")], "3.png is there twice"),
    ],
)
def test_members_that_are_there_twice(more: list[Member], message: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "train.tar.gz", [*members_of("train", PHOTOS), *more])
    with pytest.raises(Refused, match=f"train.tar.gz cannot be used .{message}"):
        scanned(path)


def test_no_digit_struct(tmp_path: Path) -> None:
    path = archive(tmp_path / "train.tar.gz", members_of("test", PHOTOS))
    with pytest.raises(Refused, match="it holds no train/digitStruct.mat"):
        scanned(path)


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "train.tar.gz", members_of("train", PHOTOS))
    whole = path.read_bytes()
    for keep in (0, 1, 9, 30, 400, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(Refused, match="train.tar.gz cannot be used"):
            scanned(path)
    for other in (b"<html>not found</html>", whole + b"more", gzip.compress(b"no tar" * 1000), gzip.compress(b"")):
        path.write_bytes(other)
        with pytest.raises(Refused, match="train.tar.gz cannot be used"):
            scanned(path)
    with pytest.raises(Refused, match="nowhere.tar.gz cannot be read .No such file"):
        Archive(tmp_path / "nowhere.tar.gz", "train")


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """tarfile alone skips the checksum of gzip. A few bits mean nothing: the time in gzip's header, unused ones."""
    path = archive(tmp_path / "train.tar.gz", members_of("train", PHOTOS[:3]))
    whole, chance = path.read_bytes(), random.Random(0)
    right = scanned(path)
    same = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            assert scanned(path) == right
            same += 1
        except Refused as refused:
            assert str(path) in str(refused) and "\n" not in str(refused)
    assert same < 10


def raw(*members: Member) -> bytes:
    """The bytes of a tar without its end."""
    return b"".join(info.tobuf() + content + bytes(-len(content) % 512) for info, content in members)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    members = [m for m in members_of("train", PHOTOS) if m[0].isreg()]
    first, rest = raw(*members[:-4]), bytearray(raw(*members[-4:]))
    rest[150] ^= 1  # the header's own checksum
    path = tmp_path / "train.tar.gz"
    struct = raw(member("train/digitStruct.mat", b"x"))
    for middle in (bytes(rest), bytes(1024) + bytes(rest), b"junk"):
        path.write_bytes(gzip.compress(struct + first + middle + bytes(1024)))
        with pytest.raises(Refused, match="train.tar.gz cannot be used"):
            scanned(path)


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.tar.gz"
    for name, size in (("train/1.png", module.MAX_IMAGE + 1), ("train/digitStruct.mat", module.MAX_STRUCT + 1)):
        info = tarfile.TarInfo(name)
        info.size = size
        path.write_bytes(gzip.compress(info.tobuf() + bytes(2048)))
        with pytest.raises(Refused, match=f"{name} claims {size:,} bytes, more than the limit"):
            scanned(path)
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    path.write_bytes(gzip.compress(long.tobuf(tarfile.GNU_FORMAT) + bytes(2048)))
    with pytest.raises(Refused, match="a header claims 8,589,93[0-9,]* bytes"):
        scanned(path)


def test_a_sparse_member_is_not_read(tmp_path: Path) -> None:
    """A map in the header may claim any size that the archive does not hold."""
    info = tarfile.TarInfo("train/800.png")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": f"0,1,{1 << 39},1"}
    info.size = 2
    path = tmp_path / "train.tar.gz"
    members = raw(*[m for m in members_of("train", PHOTOS) if m[0].isreg()])
    path.write_bytes(gzip.compress(info.tobuf(tarfile.PAX_FORMAT) + b"ab".ljust(512, b"\0") + members + bytes(1024)))
    assert sorted(scanned(path)[0]) == list(range(1, 13))


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MB of zeros in 100 kB, with the limit set to 50 MB; memory stays flat."""
    monkeypatch.setattr(tarball, "MAX_UNPACKED", 50 << 20)
    path = tmp_path / "train.tar.gz"
    with gzip.open(path, "wb") as file:
        info = tarfile.TarInfo("train/bomb")
        info.size = 100 << 20
        file.write(info.tobuf())
        for _ in range(100):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
    with pytest.raises(Refused, match="train.tar.gz cannot be used .it unpacks to more than 52,428,800 bytes"):
        scanned(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


def test_a_folder_is_read_like_an_archive(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    for number in (10, 9, 2):
        (folder / f"{number}.png").write_bytes(b"%d" % number)
    (folder / "digitStruct.mat").write_bytes(b"struct")
    (folder / "notes.txt").write_bytes(b"")
    source = Folder(folder)
    struct = io.BytesIO()
    assert source.scan(struct.write) == [2, 9, 10] and struct.getvalue() == b"struct"
    assert list(source.images()) == [(2, b"2"), (9, b"9"), (10, b"10")]
    assert Folder(folder).identity == source.identity
    (folder / "9.png").write_bytes(b"another")
    assert Folder(folder).identity != source.identity
    (folder / "9.png").write_bytes(bytes(module.MAX_IMAGE + 1))
    with pytest.raises(Refused, match="9.png has more than 8,388,608 bytes"):
        list(Folder(folder).images())
    (folder / "digitStruct.mat").unlink()
    with pytest.raises(Refused, match="digitStruct.mat cannot be read"):
        Folder(folder)
    for one in folder.iterdir():
        one.unlink()
    folder.rmdir()
