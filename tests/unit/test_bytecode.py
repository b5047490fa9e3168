"""The one file gets byte code for the Python that installs it."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import zipfile
from pathlib import Path

from agent.tools import bytecode

SHEBANG = b"#!/usr/bin/env python3.11\n"
MAIN = b"import part\nprint(part.ANSWER)\n"
PART = b"ANSWER = 42\n"


def archive(code: bytes) -> bytes:
    """As deploy/release/pyz.py writes it: a shebang, sources, byte code beside each."""
    written = io.BytesIO()
    written.write(SHEBANG)
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as new:
        for name, data in (("__main__.py", MAIN), ("__main__.pyc", code), ("part.py", PART), ("part.pyc", code)):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100644 << 16
            new.writestr(entry, data)
        new.writestr("a/b.txt", b"text")
    return written.getvalue()


def entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        return {name: old.read(name) for name in old.namelist()}


def run(file: Path) -> str:
    return subprocess.run([sys.executable, "-I", "-S", file], capture_output=True, text=True, check=True).stdout


def test_byte_code_of_another_python_is_made_anew_and_used(tmp_path: Path):
    other = archive(b"\x00\x00\r\n" + bytes(12))  # a magic number of none
    assert not bytecode.is_for_this_python(other)
    fresh = bytecode.compiled(other)
    assert fresh.startswith(SHEBANG)
    assert bytecode.is_for_this_python(fresh)
    before, after = entries(other), entries(fresh)
    assert list(before) == list(after)
    assert all(before[name] == after[name] for name in before if not name.endswith(".pyc"))
    (tmp_path / "whole").write_bytes(fresh)
    assert run(tmp_path / "whole") == "42\n"
    # Without its sources it runs as well: what is read is the byte code.
    with zipfile.ZipFile(tmp_path / "bare", "w") as bare:
        for name, data in after.items():
            if name.endswith(".pyc"):
                bare.writestr(name, data)
    assert run(tmp_path / "bare") == "42\n"
    assert bytecode.compiled(fresh) == fresh


def test_an_archive_without_byte_code_is_taken_as_it_is():
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as none:
        none.writestr("x.py", b"")
    assert bytecode.is_for_this_python(written.getvalue())


def test_the_magic_number_is_this_pythons():
    fresh = entries(bytecode.compiled(archive(b"")))
    assert fresh["part.pyc"].startswith(importlib.util.MAGIC_NUMBER)
