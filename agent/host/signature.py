"""Signatures of documents, by OpenSSH's own `ssh-keygen -Y` (namespace `edgeagent`): no cryptography of ours.

Whatever key OpenSSH takes will do: files, keys held by an ssh-agent (name the public file), FIDO keys.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent.errors import PolicyError, StoreError, UsageError
from agent.host.files import read_regular

NAMESPACE = "edgeagent"
SIGN_SECONDS = 120.0  # a person may have to find and touch a FIDO key
CHECK_SECONDS = 10.0
MOST = 16_384  # bytes of a signature; RSA's largest, with a certificate, stays below
_MOST_NAMES = 50
_PRINCIPALS = re.compile(r'\s*(?:"([^"]+)"|([^\s#"]\S*))\s')
REMEDY = "sign it: `agent sync FILE --sign KEY`"


def sign(data: bytes, key: Path) -> bytes:
    """The armored signature of `data` by `key`, a private file or the public one of a key in an agent.

    Raises UsageError.
    """
    if not key.exists():
        raise UsageError(f"{key}: there is no such key")
    done = _keygen("sign", "-f", str(key), data=data, seconds=SIGN_SECONDS)
    if done.returncode != 0 or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise UsageError(f"cannot sign with {key}: {_words(done.stderr)}")
    return done.stdout


def check(data: bytes, signature: bytes, signers: Path) -> str:
    """The signer of `data`, one of `signers` (a file as in ssh-keygen(1), ALLOWED SIGNERS). Raises PolicyError."""
    if not signers.is_file():
        raise PolicyError(
            f"{signers}: there is no such file, so nobody may sign",
            remedy="it is sync.allowed_signers in agent.toml; each line: a name, and a public key",
        )
    if not signature:
        raise PolicyError("it is not signed, and sync.allowed_signers takes signed documents only", remedy=REMEDY)
    if len(signature) > MOST:
        raise PolicyError(f"a signature of {len(signature):,} bytes; at most {MOST:,} are read")
    with _scratch() as folder:
        file = Path(folder) / "signature"
        file.write_bytes(signature)
        principals = _keygen("find-principals", "-s", str(file), "-f", str(signers), data=b"")
        names = principals.stdout.decode(errors="replace").splitlines()
        if principals.returncode != 0 or not names:
            fits = _keygen("check-novalidate", "-n", NAMESPACE, "-s", str(file), data=data)
            if fits.returncode == 0:
                raise PolicyError(f"it is signed, but by nobody in {signers}", remedy=REMEDY)
            raise PolicyError(f"its signature is not one of this document: {_words(fits.stderr)}", remedy=REMEDY)
        complaint = b""
        # Only the first line of a key is found so, and one key may stand there twice, each line for its own purpose.
        for name in tuple(dict.fromkeys([*names, *_principals(signers)]))[:_MOST_NAMES]:
            arguments = ("-n", NAMESPACE, "-f", str(signers), "-I", name, "-s", str(file))
            done = _keygen("verify", *arguments, data=data)
            if done.returncode == 0:
                return name
            complaint = done.stderr
    raise PolicyError(
        f"its signature by {names[0]} does not fit: it was altered, or signed for something else ({_words(complaint)})",
        remedy=REMEDY,
    )


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A folder of its own. Raises StoreError: a full /tmp must refuse a document, not end the service."""
    try:
        with tempfile.TemporaryDirectory(prefix="edgeagent-") as folder:
            yield folder
    except OSError as error:
        raise StoreError(
            f"cannot check a signature: {error.strerror}", remedy="look at the temporary folder"
        ) from error


def _principals(signers: Path) -> list[str]:
    """The names at the beginning of each line, without quotes."""
    lines = read_regular(signers).decode(errors="replace").splitlines()
    matches = (_PRINCIPALS.match(line) for line in lines)
    lists = [(match[1] or match[2]).split(",") for match in matches if match is not None]
    return [name for names in lists for name in names if not name.startswith("!")]


def _keygen(
    action: str, *arguments: str, data: bytes, seconds: float = CHECK_SECONDS
) -> subprocess.CompletedProcess[bytes]:
    extra = ("-n", NAMESPACE) if action == "sign" else ()
    try:
        return subprocess.run(  # noqa: S603  # an argument list, no shell
            ["ssh-keygen", "-Y", action, *extra, *arguments],  # noqa: S607  # OpenSSH, wherever the system has it
            input=data,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PolicyError(f"ssh-keygen did not end within {seconds:.0f} s") from None
    except OSError as error:
        raise UsageError(f"ssh-keygen does not run: {error.strerror}", remedy="install OpenSSH") from error


def _words(stderr: bytes) -> str:
    """What ssh-keygen said, in one printable line."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return (
        "".join(character if character.isprintable() else "." for character in "; ".join(lines))[:300] or "no word why"
    )
