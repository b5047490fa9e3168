"""The one file with byte code for the Python that runs it.

It is built with that of pfSense's Python (deploy/release/pyz.py). A later Python ignores that, and would compile every
module at each start: zipimport keeps nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import sys
import warnings
import zipfile

_UNCHECKED_HASH = (1).to_bytes(4, "little")  # PEP 552: the source's hash follows, and is not compared


def is_for_this_python(archive: bytes) -> bool:
    """Whether the archive's byte code is what this Python reads; also where it has none."""
    with zipfile.ZipFile(io.BytesIO(archive)) as old:
        name = next((member for member in old.namelist() if member.endswith(".pyc")), None)
        return name is None or old.read(name).startswith(importlib.util.MAGIC_NUMBER)


def compiled(archive: bytes) -> bytes:
    """The same archive, its shebang included, with each `.pyc` made anew from the `.py` beside it. Takes seconds."""
    fresh = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old:
        entries = old.infolist()
        content = {entry.filename: old.read(entry) for entry in entries}  # writing an entry changes its offset
        fresh.write(archive[: min(entry.header_offset for entry in entries)])
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as new:
            for entry in entries:
                name, source = entry.filename, entry.filename.removesuffix("c")
                compiled = name.endswith(".pyc")
                new.writestr(entry, _code(content[source], source) if compiled else content[name])
    return fresh.getvalue()


def _code(source: bytes, name: str) -> bytes:
    with warnings.catch_warnings(action="ignore"):  # what later Pythons think of others' packages
        code = compile(source, name, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(source) + marshal.dumps(code)


def identity(archive: bytes) -> str:
    """A digest of everything but the byte code, which is not the same bytes each time (the order of set constants).

    Raises BadZipFile where it is not whole.
    """
    digest = hashlib.sha256()
    with zipfile.ZipFile(io.BytesIO(archive)) as whole:
        for entry in whole.infolist():
            if not entry.filename.endswith(".pyc"):
                digest.update(f"{entry.filename}\n{entry.file_size}\n".encode() + whole.read(entry))
    return digest.hexdigest()


def label() -> str:
    """`3.13` of this Python."""
    return ".".join(map(str, sys.version_info[:2]))
