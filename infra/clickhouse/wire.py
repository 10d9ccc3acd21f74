"""The outside of the protocol: body encodings, HTTP statuses of ClickHouse's error codes, content types, block joins."""

from __future__ import annotations

import mmap
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cramjam
import lz4.frame  # type: ignore[import-untyped]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BROTLI_MAX = 1 << 28  # bytes: a brotli body is decompressed at once
PIECE = 1 << 20  # bytes: decompressed data is handed on in pieces of at most this size

# ClickHouse's error codes that are not a plain 500, by the status that its HTTP server answers with.
STATUS = {
    code: status
    for status, codes in {
        400: (
            6,
            8,
            15,
            25,
            26,
            27,
            36,
            37,
            38,
            41,
            44,
            53,
            62,
            72,
            117,
            123,
            167,
            168,
            223,
            321,
            376,
            427,
            441,
            675,
            676,
        ),
        401: (194,),
        403: (192, 193, 497, 512, 516),
        404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511),
        408: (159,),
        411: (381,),
        413: (229,),
        415: (779,),
        501: (48,),
        503: (76, 209, 439),
    }.items()
    for code in codes
}


class Problem(Exception):
    """An error with ClickHouse's code; its text is what a client sees."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code

    @classmethod
    def of(cls, error: Exception) -> Problem:
        """The engine's own error: its text begins with `Code: N.`"""
        if isinstance(error, Problem):
            return error
        text = str(error)
        found = re.search(r"(?:Code: (\d+)\. DB::Exception: )+", text)
        if not found:
            return cls(1002, f"{text} (UNKNOWN_EXCEPTION)")
        return cls(int(found.group(1)), text[found.end() :].rstrip())

    @property
    def status(self) -> int:
        return STATUS.get(self.code, 500)

    def body(self, version: str) -> bytes:
        tail = "" if "(version " in str(self)[-60:] else f" (version {version})"
        return f"Code: {self.code}. DB::Exception: {self}{tail}\n".encode()


def decoded(encoding: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Undo a request's Content-Encoding, frame after frame: a client may send every block as a frame of its own.

    Raises Problem for an unknown encoding, damaged data, or data that ends within a frame.
    """
    match encoding:
        case "" | "identity":
            return (piece for piece in pieces if piece)
        case "gzip" | "x-gzip":
            return _framed(lambda: zlib.decompressobj(31), _zlib, pieces, 354)
        case "deflate":
            return _framed(lambda: zlib.decompressobj(15), _zlib, pieces, 354)
        case "lz4":
            return _framed(lz4.frame.LZ4FrameDecompressor, _bounded, pieces, 618)
        case "zstd":
            return _framed(zstd.ZstdDecompressor, _bounded, pieces, 561)
        case "br":
            return _brotli(pieces)
    raise Problem(89, f"Unknown compression method: {encoding}. (UNKNOWN_COMPRESSION_METHOD)")


def _zlib(codec: Any, data: bytes) -> Iterator[bytes]:
    while data and not codec.eof:
        yield codec.decompress(data, PIECE)
        data = codec.unconsumed_tail


def _bounded(codec: Any, data: bytes) -> Iterator[bytes]:
    yield codec.decompress(data, max_length=PIECE)
    while not codec.eof and not codec.needs_input:
        yield codec.decompress(b"", max_length=PIECE)


def _framed(
    new: Callable[[], Any], step: Callable[[Any, bytes], Iterator[bytes]], pieces: Iterator[bytes], code: int
) -> Iterator[bytes]:
    codec = None
    for piece in pieces:
        while piece:
            codec = codec or new()
            try:
                yield from filter(None, step(codec, piece))
            except (zlib.error, RuntimeError, zstd.ZstdError) as error:
                raise Problem(code, f"The request's body can't be decompressed: {error}") from error
            piece = b""
            if codec.eof:
                piece, codec = codec.unused_data or b"", None
    if codec:
        raise Problem(code, "The request's compressed body ends too early")


def _brotli(pieces: Iterator[bytes]) -> Iterator[bytes]:
    body = b"".join(pieces)
    if not body:
        return
    with mmap.mmap(-1, BROTLI_MAX) as room:  # takes memory only where it is written to
        try:
            size = cramjam.brotli.decompress_into(body, room)
        except (OSError, cramjam.DecompressionError) as error:
            why = f"The request's body can't be decompressed, or to more than {BROTLI_MAX} bytes: {error}"
            raise Problem(448, why) from error
        yield from (room[at : min(at + PIECE, size)] for at in range(0, size, PIECE))


class Encoder:
    """A response's Content-Encoding, flushed with every piece so that a reader gets rows as they come."""

    def __init__(self, accepted: str):
        """`accepted` is an Accept-Encoding header: the first one of it that is known here is taken."""
        offered = (part.replace(" ", "").lower().split(";") for part in accepted.split(","))
        wanted = (name for name, *weight in offered if weight != ["q=0"])
        self.name = next((name for name in wanted if name in ENCODERS), "")
        self._codec = ENCODERS[self.name]() if self.name else None

    def piece(self, data: bytes) -> bytes:
        return data if self._codec is None else self._codec(data, False)

    def end(self) -> bytes:
        return b"" if self._codec is None else self._codec(b"", True)


def _deflated(bits: int) -> Callable[[bytes, bool], bytes]:
    codec = zlib.compressobj(1, zlib.DEFLATED, bits)
    return lambda data, last: codec.compress(data) + codec.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


def _zstd_encoder() -> Callable[[bytes, bool], bytes]:
    codec = zstd.ZstdCompressor(level=1)
    return lambda data, last: codec.compress(data, codec.FLUSH_FRAME if last else codec.FLUSH_BLOCK)


def _lz4_encoder() -> Callable[[bytes, bool], bytes]:
    codec = lz4.frame.LZ4FrameCompressor(auto_flush=True)

    def encode(data: bytes, last: bool) -> bytes:
        head = b"" if codec.started() else codec.begin()
        return bytes(head + (codec.compress(data) if data else b"") + (codec.flush() if last else b""))

    return encode


def _brotli_encoder() -> Callable[[bytes, bool], bytes]:
    codec = cramjam.brotli.Compressor(1)

    def encode(data: bytes, last: bool) -> bytes:
        codec.compress(data)
        return bytes(codec.finish() if last else codec.flush())

    return encode


ENCODERS: dict[str, Callable[[], Callable[[bytes, bool], bytes]]] = {
    "lz4": _lz4_encoder,
    "zstd": _zstd_encoder,
    "gzip": lambda: _deflated(31),
    "deflate": lambda: _deflated(15),
    "br": _brotli_encoder,
}

# Formats whose blocks, written one by one, are together what the whole would be: value is how many header lines each
# block repeats. Every other format (JSON, Parquet, Pretty, …) has a frame around all rows and is answered whole.
STREAMED = {
    **dict.fromkeys(("Native", "TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw", "CSV", "RowBinary"), 0),
    **dict.fromkeys(("JSONEachRow", "JSONLines", "NDJSON", "JSONCompactEachRow", "LineAsString", "TSKV", "Null"), 0),
    **dict.fromkeys(("TabSeparatedWithNames", "TSVWithNames", "JSONCompactEachRowWithNames"), 1),
    **dict.fromkeys(("TabSeparatedWithNamesAndTypes", "TSVWithNamesAndTypes"), 2),
    "JSONCompactEachRowWithNamesAndTypes": 2,
    "CSVWithNames": 1,
    "CSVWithNamesAndTypes": 2,
}

CONTENT_TYPES = (
    (r"(TabSeparated|TSV).*", "text/tab-separated-values; charset=UTF-8"),
    (r"(CSV|CustomSeparated).*", "text/csv; charset=UTF-8"),
    (r"JSON(Compact|Strings)*EachRow.*|JSONLines|NDJSON", "application/x-ndjson; charset=UTF-8"),
    (r"JSON.*", "application/json; charset=UTF-8"),
    (r"XML", "application/xml; charset=UTF-8"),
    (r"Native|RowBinary.*|Parquet|ORC|Arrow.*|Avro.*|MsgPack|BSON.*|Protobuf.*|Npy", "application/octet-stream"),
)


def content_type(format: str) -> str:
    return next((kind for names, kind in CONTENT_TYPES if re.fullmatch(names, format)), "text/plain; charset=UTF-8")


def without_header(data: bytes, format: str) -> bytes:
    """A later block of a line format without the header lines that it repeats."""
    at = 0
    for _ in range(STREAMED[format]):
        begin = at
        while True:
            at = data.index(b"\n", at) + 1
            if not format.startswith("CSV") or data.count(b'"', begin, at) % 2 == 0:
                break  # in CSV a line break may stand within quotes; the others escape it
    return data[at:]
