"""Webdataset tars: the members `KEY.jpg`, `KEY.txt` and `KEY.json` are one image with its caption.

A tar is indexed once, by reading its headers: from a disk half a kilobyte a member, from a store the tar as a stream.
Then parts of it are read by position, so that many workers share one tar, a killed worker loses a part, not a tar, and
the remaining time is known. Members of one key may be anywhere in the tar.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from recap_ray.errors import ImageError, first_line
from recap_ray.images.decode import IMAGE_SUFFIXES
from recap_ray.inputs.rows import ManifestRow

TEXT_FORMATS = ("txt", "json")  # the first that a key has is its caption
CAPTION_NAMES = ("caption", "text", "TEXT")  # in a .json
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
BLOCK = 512  # a tar's unit
OCTAL = re.compile(rb" *([0-7]+)[ \0]*")  # a number in a header


@dataclass(slots=True)
class _Sample:
    """The members of one key: the place of each one's bytes, as START+SIZE."""

    offset: int  # of its first member
    image: str = ""
    extension: str = ""  # of the image
    texts: dict[str, str] = field(default_factory=dict)  # format -> place
    others: list[str] = field(default_factory=list)


def index_tar(path: Path) -> list[ManifestRow]:
    """Return a row for each key, in the order of their first members; and one for the place where a damaged tar ends.

    A key is a member's name up to the first dot, folders included, as in webdataset. Of several images of a key the
    first one counts whose extension is plain (`jpg`, not `mask.png`), or else the first.
    """
    samples: dict[str, _Sample] = {}
    damage = None
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if kind := COMPRESSED.get(file.read(2)):
                damage = (0, f"it is compressed by {kind}: expected a plain tar, which can be read from any place")
            else:
                file.seek(0)
                damage = _read_headers(file, size, samples)
    except (FileNotFoundError, PermissionError) as error:
        damage = (0, error.strerror or first_line(error))
    rows = [_row(path, key, sample) for key, sample in samples.items()]
    if damage:
        offset, reason = damage
        message = f"damaged_input: {path} from byte {offset:,} on: {reason}"
        rows.append(ManifestRow(f"{path.name}#{offset}", f"{path}#bytes={offset}+0", error=message))
    return rows


def _read_headers(file: IO[bytes], size: int, samples: dict[str, _Sample]) -> tuple[int, str] | None:
    """Fill `samples`; return the offset and the reason if the tar ends too early."""
    tar = None
    try:
        # Keys are text, names may be any bytes.
        tar = tarfile.TarFile(fileobj=file, tarinfo=_Header, encoding="utf-8", errors="backslashreplace")
        while member := tar.next():
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps them all
            if not member.isreg():
                continue
            if member.offset_data + member.size > size:
                return member.offset, f"the member {member.name} is cut off"
            _add_member(member, samples)
        offset = tar.offset
    except tarfile.TarError as error:
        return (tar.offset if tar else 0), first_line(error)
    # tarfile treats any broken header as the end; the real end is a block of zeros, or nothing.
    file.seek(offset)
    block = file.read(BLOCK)
    return (offset, "no header of a member") if any(block) else None


class _Header(tarfile.TarInfo):
    """A member's header, parsed for name, size and type only, which halves the time of an index: a tar of small images
    has one every few kilobytes. Headers other than plain ones of regular files are parsed by tarfile."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return the header in a block; raises tarfile.HeaderError if there is none."""
        size, checksum = OCTAL.fullmatch(buf, 124, 136), OCTAL.fullmatch(buf, 148, 156)
        name = buf[:100].rstrip(b"\0")
        plain = len(buf) == BLOCK and buf[156:157] == tarfile.REGTYPE and b"\0" not in name
        if not (plain and size and checksum and int(checksum[1], 8) == sum(buf) - sum(buf[148:156]) + 8 * ord(" ")):
            return super().frombuf(buf, encoding, errors)
        header = cls(name.decode(encoding, errors))
        header.size, header.type = int(size[1], 8), tarfile.REGTYPE
        if prefix := buf[345:500].partition(b"\0")[0]:
            header.name = f"{prefix.decode(encoding, errors)}/{header.name}"
        return header


def _add_member(member: tarfile.TarInfo, samples: dict[str, _Sample]) -> None:
    folder, slash, name = member.name.rpartition("/")
    stem, dot, extension = name.partition(".")
    if not stem or not dot:  # hidden files and files without an extension belong to no sample
        return
    sample = samples.setdefault(f"{folder}{slash}{stem}", _Sample(member.offset))
    extension, place = extension.lower(), f"{member.offset_data}+{member.size}"
    if f".{extension.rpartition('.')[2]}" in IMAGE_SUFFIXES:
        if not sample.image or ("." in sample.extension and "." not in extension):
            sample.image, sample.extension = place, extension
    elif extension in TEXT_FORMATS:
        sample.texts.setdefault(extension, place)
    else:
        sample.others.append(extension)


def _row(path: Path, key: str, sample: _Sample) -> ManifestRow:
    text = next((f"bytes={sample.texts[kind]}&{kind}" for kind in TEXT_FORMATS if kind in sample.texts), "")
    if sample.image:
        return ManifestRow(key, f"{path}#bytes={sample.image}", text)
    members = ", ".join([*sample.texts, *sample.others])
    return ManifestRow(key, f"{path}#bytes={sample.offset}+0", text, error=f"no_image: its members are {members}")


def read_tar(path: Path, places: Sequence[tuple[str, str]], max_bytes: int) -> Iterator[tuple[bytes | ImageError, str]]:
    """Yield the bytes and the caption of each pair of places, `bytes=START+SIZE` and `bytes=START+SIZE&FORMAT` or "".

    In the order of its manifest, which is that of the tar, the file is read as a stream.
    """
    with path.open("rb") as file:
        for image, text in places:
            yield _member(file, image, max_bytes), _caption(file, text, max_bytes)


def _member(file: IO[bytes], place: str, max_bytes: int) -> bytes | ImageError:
    start, size = map(int, place.removeprefix("bytes=").partition("&")[0].split("+"))
    if size > max_bytes:
        return ImageError("too_many_bytes", f"{size} bytes, the limit is {max_bytes}")
    file.seek(start)
    data = file.read(size)
    return data if len(data) == size else ImageError("unreadable", f"the tar ends {size - len(data)} bytes too early")


def _caption(file: IO[bytes], place: str, max_bytes: int) -> str:
    data = _member(file, place, max_bytes) if place else b""
    if not data or isinstance(data, ImageError):
        return ""
    text = data.decode("utf-8", "replace")
    if not place.endswith("&json"):
        return text.strip()
    with suppress(ValueError):
        content = json.loads(text)
        if isinstance(content, dict):
            return next((str(content[name]).strip() for name in CAPTION_NAMES if content.get(name)), "")
    return ""
