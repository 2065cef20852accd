"""ZIP archives and e-mails → the documents inside, before anything is filed.

Nothing is written to disk and no path is followed: a member's path is a name. What an archive declares is checked
first, what it really unpacks to is bounded again while reading, since declarations can lie.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import PurePath, PurePosixPath

from app.errors import AppError, PayloadTooLarge, UnreadableDocument, UnsupportedMediaType
from app.rag.parsing import mail
from app.rag.parsing.media import EML, detect

MAX_DEPTH = 2  # an archive in an archive (or an e-mail in one) is opened, what is in that is not
MAX_MEMBERS = 1_000
MAX_UNPACKED = 256 * 2**20  # bytes, all members together
MAX_RATIO = 200  # unpacked : packed of a member over a mebibyte; text packs about 10 : 1
_ZIP = b"PK\x03\x04"
_JUNK = ("__MACOSX/", ".DS_Store", "Thumbs.db", "desktop.ini")
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError, OSError)


@dataclass(frozen=True, slots=True)
class File:
    """A file as it came, or as it lay in an archive; the name then has the path in it."""

    filename: str
    media_type: str
    data: bytes


@dataclass(slots=True)
class Unpacked:
    """`files` in the order of the archive; `refused` says of members that cannot be documents why, by name."""

    files: list[File] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    bytes: int = 0


def unpack(file: File, max_bytes: int) -> Unpacked:
    """The file itself, or for a ZIP archive its members, and for an e-mail it and its attachments, each at most
    `max_bytes`.

    Raises UnreadableDocument for an archive that is damaged, a bomb, or holds paths that lead out of it, and for a
    file that is no archive what `detect` raises about its type.
    """
    found = Unpacked()
    _open(file, found, max_bytes, 0)
    return found


def _open(file: File, found: Unpacked, max_bytes: int, depth: int) -> None:
    if is_archive(file):
        if depth >= MAX_DEPTH:
            found.refused.append((file.filename, f"archives are opened {MAX_DEPTH} deep at most"))
            return
        _open_zip(file, found, max_bytes, depth)
        return
    if len(file.data) > max_bytes:
        raise PayloadTooLarge(f"{file.filename!r} has {len(file.data)} bytes; a document has at most {max_bytes}.")
    if _kind(file) == EML and depth < MAX_DEPTH:
        found.files.append(file)
        for name, media_type, data in mail.attachments(file.data, file.filename):
            _take(File(f"{file.filename}/{_plain(name)}"[-255:], media_type, data), found, max_bytes, depth + 1)
        return
    found.files.append(file)


def is_archive(file: File) -> bool:
    """Whether it is a ZIP that is not an office document."""
    if not file.data.startswith((_ZIP, b"PK\x05\x06")):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            return "[Content_Types].xml" not in archive.namelist()
    except _BROKEN as error:
        if PurePath(file.filename).suffix.lower() == ".zip":
            raise UnreadableDocument(f"{file.filename!r} is a damaged archive.", reason="corrupt") from error
        return False


def _kind(file: File) -> str:
    """The type by `detect`; a damaged document of a known type is filed all the same, its job will say why."""
    try:
        return detect(file.data, file.filename, file.media_type or None)
    except UnreadableDocument:
        return ""


def _take(file: File, found: Unpacked, max_bytes: int, depth: int) -> None:
    """A member of something: what is wrong with it is noted, and the others go on."""
    if len(found.files) >= MAX_MEMBERS:
        raise UnreadableDocument(
            f"{file.filename!r}: an archive has at most {MAX_MEMBERS} documents.", reason="members"
        )
    try:
        _open(file, found, max_bytes, depth)
    except (UnreadableDocument, UnsupportedMediaType, PayloadTooLarge) as error:
        if isinstance(error, UnreadableDocument) and error.extra.get("reason") in ("too_large", "members"):
            raise  # a bomb anywhere inside condemns the whole
        found.refused.append((file.filename, error.detail))


def _open_zip(file: File, found: Unpacked, max_bytes: int, depth: int) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not _is_junk(m.filename)]
            _guard(file.filename, members)
            for member in members:
                name = f"{PurePath(file.filename).name}/{member.filename}" if depth else member.filename
                if member.flag_bits & 1:
                    found.refused.append((name, "it is encrypted; add it without a password"))
                    continue
                data = _read(archive, member, file.filename, found)
                _take(File(name[-255:], "", data), found, max_bytes, depth + 1)
    except AppError:
        raise
    except _BROKEN as error:
        raise UnreadableDocument(f"{file.filename!r} is a damaged archive.", reason="corrupt") from error


def _guard(filename: str, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in member.orig_filename:
            detail = f"{filename!r} holds a path that leads out of it: {member.filename!r}."
            raise UnreadableDocument(detail, reason="path")
    packed = [m for m in members if m.file_size > 1 << 20 and m.file_size > MAX_RATIO * max(1, m.compress_size)]
    if len(members) > MAX_MEMBERS:
        raise UnreadableDocument(f"{filename!r} has {len(members)} members; {MAX_MEMBERS} may be.", reason="members")
    if packed or sum(m.file_size for m in members) > MAX_UNPACKED:
        raise UnreadableDocument(f"{filename!r} unpacks to more than an archive may.", reason="too_large")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, filename: str, found: Unpacked) -> bytes:
    """At most what is left of MAX_UNPACKED, whatever the header says."""
    left = MAX_UNPACKED - found.bytes
    with archive.open(member) as opened:
        data = opened.read(left + 1)
    if len(data) > left:
        raise UnreadableDocument(f"{filename!r} unpacks to more than an archive may.", reason="too_large")
    found.bytes += len(data)
    return data


def _is_junk(name: str) -> bool:
    """What operating systems add to archives by themselves."""
    return name.startswith(_JUNK[0]) or PurePosixPath(name).name in _JUNK or PurePosixPath(name).name.startswith("._")


def _plain(name: str) -> str:
    """The last part of a name that a stranger chose."""
    return PurePosixPath(name.replace("\\", "/")).name.replace("\0", "") or "attachment"
