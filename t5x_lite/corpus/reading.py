"""WET and WARC files -> pages. A damaged record costs itself: the next one is looked for, and the damage is told.

Crawls are files of many gzip members, one for each record. They are unpacked one by one, so that what cannot be
unpacked takes no other with it; what a record says is read by warcio, text out of HTML by resiliparse.
"""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from etils import epath

from t5x_lite.corpus.rules import Page, Removed, whole_page

MAX_RECORD_BYTES = 64 << 20  # unpacked; Common Crawl cuts responses at 1 MiB
_MAGIC = b"\x1f\x8b\x08"
_CHUNK = 1 << 18


class Damage(NamedTuple):
    """What could not be unpacked: `damaged`, `truncated` or `oversized`, and how many bytes of the file it took."""

    rule: str
    bytes: int


def read_pages(path: str) -> Iterator[Page | Removed]:
    """The pages of a file, and what was left out because it is none.

    A page's lines are without blanks around them, and none is blank. Files whose name ends in `.gz` are unpacked. What
    was left out is told by the file's name alone, which is the same wherever it lies.
    """
    name = os.path.basename(path)
    with epath.Path(path).open("rb") as file:
        if not path.endswith(".gz"):
            yield from _records(file, name)
            return
        for start, member in gzip_members(file):
            place = f"{name} at byte {start:,}"
            if not isinstance(member, Damage):
                yield from _records(io.BytesIO(member), place)
            elif member.rule == "oversized" and start == 0:
                # All in one member, as `gzip` packs a file: read as a stream, in which a damage ends it.
                file.seek(0)
                yield from _records(gzip.GzipFile(fileobj=file), name)
                return
            else:
                yield Removed(member.rule, 0, 0, member.bytes, place)


def gzip_members(file: BinaryIO, limit: int = MAX_RECORD_BYTES) -> Iterator[tuple[int, bytes | Damage]]:
    """(place in the file, unpacked bytes or what is wrong) of each gzip member.

    After a damage the next member is looked for, by its first bytes. Those can stand in packed data by chance: members
    that fail while looking are part of the same damage.
    """
    start, lost_since, rule = 0, None, "damaged"
    while (place := _find(file, start)) is not None:
        if place > start and lost_since is None:
            lost_since = start
        start = place
        member, end = _unpack(file, start, limit)
        if isinstance(member, bytes) or member.rule == "oversized":
            if lost_since is not None:
                yield lost_since, Damage("damaged", start - lost_since)
                lost_since = None
            yield start, member
            start = end
        else:
            if lost_since is None:
                lost_since, rule = start, member.rule
            start += 1
    lost_since, end = start if lost_since is None else lost_since, file.seek(0, io.SEEK_END)
    if lost_since < end:
        yield lost_since, Damage(rule, end - lost_since)


def _find(file: BinaryIO, start: int) -> int | None:
    """Where the first bytes of a gzip member stand next, from `start` on."""
    file.seek(start)
    before = b""
    while chunk := file.read(_CHUNK):
        if (place := (before + chunk).find(_MAGIC)) >= 0:
            return start - len(before) + place
        start += len(chunk)
        before = chunk[-len(_MAGIC) + 1 :]
    return None


def _unpack(file: BinaryIO, start: int, limit: int) -> tuple[bytes | Damage, int]:
    """(unpacked bytes or what is wrong, where the member ends) of the member at `start`."""
    file.seek(start)
    unpacker, parts, length, read = zlib.decompressobj(wbits=31), [], 0, 0
    while not unpacker.eof:
        chunk = unpacker.unconsumed_tail
        if not chunk:
            chunk = file.read(_CHUNK)
            read += len(chunk)
        if not chunk:
            return Damage("truncated", read), start + read
        try:
            part = unpacker.decompress(chunk, _CHUNK)
        except zlib.error:
            return Damage("damaged", read), start + read
        length += len(part)
        # Of a member that is too long only its end is looked for.
        if length <= limit:
            parts.append(part)
        else:
            parts.clear()
    end = start + read - len(unpacker.unused_data)
    return (b"".join(parts) if length <= limit else Damage("oversized", end - start)), end


def _records(stream: BinaryIO | gzip.GzipFile, place: str) -> Iterator[Page | Removed]:
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    try:
        for record in ArchiveIterator(stream, no_record_parse=False, ensure_http_headers=False):
            if record.rec_type not in ("conversion", "response"):
                continue
            url = record.rec_headers.get_header("WARC-Target-URI") or ""
            yield _page(record, url, f"{url or 'no address'}, {place}")
    except (ArchiveLoadFailed, EOFError, OSError, zlib.error, ValueError) as e:
        yield Removed("truncated" if isinstance(e, EOFError) else "damaged", 0, 0, 0, f"{place}: {e}")


def _page(record, url: str, place: str) -> Page | Removed:
    length = record.rec_headers.get_header("Content-Length") or ""
    payload = record.content_stream().read(MAX_RECORD_BYTES + 1)
    if len(payload) > MAX_RECORD_BYTES:
        return Removed("oversized", 1, 0, 0, place)
    if record.raw_stream.limit > 0:  # bytes that the header promises and the file has not
        return Removed("truncated", 1, 0, len(payload), place)
    content_type = record.rec_headers.get_header("Content-Type") or ""
    if record.rec_type == "response":
        headers = record.http_headers
        content_type = (headers.get_header("Content-Type") if headers else None) or ""
        if "html" not in content_type.lower():
            return Removed("not_html", 1, 0, len(payload), f"{content_type or 'no type'}: {place}")
        text = _text_of_html(payload, content_type)
    else:
        try:
            text = payload.decode("utf-8")
        except UnicodeDecodeError as e:
            return Removed("not_utf8", 1, 0, len(payload), f"byte {e.start:,} of {place}")
    # As files of text are read: \n, \r\n and \r end lines, and no other character does.
    lines = [line.strip() for line in io.StringIO(text, newline=None)]
    page = Page(
        url, record.rec_headers.get_header("WARC-Date") or "", "\n".join(filter(None, lines)), content_type, length
    )
    for rule, missing in (("no_url", not page.url), ("no_date", not page.timestamp), ("empty", not page.text)):
        if missing:
            return whole_page(rule, page.text, place)
    return page


def _text_of_html(payload: bytes, content_type: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse import encoding
    from resiliparse.parse.html import HTMLTree

    name = content_type.lower().partition("charset=")[2].partition(";")[0].strip("\"' ")
    try:
        codecs.lookup(name)
    except LookupError:
        name = encoding.detect_encoding(payload, from_html_meta=True) or "utf-8"
    return extract_plain_text(HTMLTree.parse(encoding.bytes_to_str(payload, name)), main_content=False)
