"""Crawl files to test with: WET and WARC, made by warcio of text that no one wrote for it."""

import ast
import html
import io
import pathlib
import re
import sysconfig

DATE = "2019-04-18T10:00:00Z"


def write_wet(path, pages, date=DATE, packed=True):
    """Writes [(url, text or bytes)] as a WET file."""
    records = [(url, text if isinstance(text, bytes) else text.encode()) for url, text in pages]
    _write(path, [("conversion", url, payload, "text/plain", None, date) for url, payload in records], packed)


def write_warc(path, pages, content_type="text/html; charset=utf-8", date=DATE, packed=True):
    """Writes [(url, HTML or bytes)] as responses."""
    from warcio.statusandheaders import StatusAndHeaders

    headers = StatusAndHeaders("200 OK", [("Content-Type", content_type)], protocol="HTTP/1.1")
    records = [(url, text if isinstance(text, bytes) else text.encode()) for url, text in pages]
    _write(path, [("response", url, payload, None, headers, date) for url, payload in records], packed)


def _write(path, records, packed):
    from warcio.warcwriter import WARCWriter

    with open(path, "wb") as f:
        writer = WARCWriter(f, gzip=packed)
        writer.write_record(writer.create_warcinfo_record(pathlib.Path(path).name, {"software": "a test"}))
        for kind, url, payload, content_type, headers, date in records:
            fields = {"WARC-Date": date} if date else {}
            record = writer.create_warc_record(
                url,
                kind,
                payload=io.BytesIO(payload),
                length=len(payload),
                warc_content_type=content_type or "",
                http_headers=headers,
                warc_headers_dict=fields,
            )
            if not date:
                record.rec_headers.remove_header("WARC-Date")
            writer.write_record(record)


def documentation(most=40):
    """[(url, HTML)] of modules of Python's library: the paragraphs of their documentation."""
    pages = []
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
        texts = [ast.get_docstring(node) or "" for node in nodes]
        paragraphs = [" ".join(p.split()) for text in texts for p in re.split(r"\n\s*\n", text) if p.strip()]
        if len(paragraphs) < 20:
            continue
        body = "".join(f"<p>{html.escape(p)}</p>\n" for p in paragraphs)
        head = f"<head><title>{path.stem}</title><script>var a = {{}};</script></head>"
        pages.append((f"https://docs.example.org/{path.stem}", f"<html>{head}<body>{body}</body></html>"))
        if len(pages) == most:
            break
    return pages
