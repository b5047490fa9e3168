"""`agent gate`: the forced command of an ssh key. A few calls get through, word by word; everything else does not.

A call is what SSH_ORIGINAL_COMMAND says. It never reaches a shell: it is split into words, every option must stand in
the list below, and only then the words are parsed by the same commands that people use.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Mapping

from attrs import frozen

from agent.errors import PolicyError

FLAGS: Mapping[str, frozenset[str]] = {
    "sync": frozenset({"--json", "--no-wait", "--dry-run", "--force", "--retry", "--withdraw"}),
    "plan": frozenset({"--json"}),
    "status": frozenset({"--json"}),
    "history": frozenset({"--json"}),
    "show": frozenset(),
    "drain": frozenset({"--json", "--force"}),
    "ready": frozenset({"--json"}),
}
VALUES: Mapping[str, Mapping[str, re.Pattern[str]]] = {
    "sync": {
        "--timeout": re.compile(r"[0-9]{1,9}(?:ms|s|m|h)"),
        "--if-live": re.compile(r"[0-9a-f]{12,64}"),
        "--digest": re.compile(r"[0-9a-f]{64}"),
        "--signature": re.compile(r"[A-Za-z0-9_=-]{1,24000}"),
    }
}
NAMED: Mapping[str, tuple[int, re.Pattern[str]]] = {
    "show": (1, re.compile(r"[1-9][0-9]{0,8}")),
    "drain": (100, re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(?:/[a-z0-9][a-z0-9._-]{0,62})?")),
    "ready": (100, re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(?:/[a-z0-9][a-z0-9._-]{0,62})?")),
}
"""What these take beside options, and how many: the number of a generation, names of servers."""
DRAINING = frozenset({"drain", "ready"})
"""Let through where `sync.allow_drain` says so."""
TAKES_DOCUMENT = frozenset({"sync", "plan"})
_ALWAYS = [command for command in FLAGS if command not in DRAINING]
_LIST = f"{', '.join(_ALWAYS[:-1])} and {_ALWAYS[-1]}"
LONGEST = 32_768  # characters of a call: a signature and some words
_NOTHING = re.compile(r"(?!)")
_PUBLIC_KEY = re.compile(r"((?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]+) ([A-Za-z0-9+/]+={0,3})(?: ([^\x00-\x1f\x7f]*))?")


def arguments(call: str | None) -> list[str]:
    """The words of a call that may get through, `-` for the document said. Raises PolicyError for every other one."""
    if call is None:
        raise PolicyError(f"this key runs `agent gate`: it lets {_LIST} through, and no shell")
    if len(call) > LONGEST:
        raise PolicyError(f"a call of {len(call):,} characters; at most {LONGEST:,} are looked at")
    if not call.isascii() or not call.isprintable():
        raise PolicyError("a call with characters that no call needs")
    try:
        arguments = shlex.split(call)
    except ValueError as error:
        raise PolicyError(f"not a call: {error}") from None
    if arguments[:1] == ["agent"]:
        arguments = arguments[1:]
    if not arguments or arguments[0] not in FLAGS:
        raise PolicyError(f"{_shown(arguments)} is not let through: only {_LIST} are")
    command, *rest = arguments
    return [command, *_checked(command, rest)]


def _checked(command: str, rest: list[str]) -> list[str]:
    """The options, each as it is listed, then the document."""
    options: list[str] = []
    names: list[str] = []
    most, name_of = NAMED.get(command, (0, _NOTHING))
    left = list(rest)
    documents = 0
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if word in FLAGS[command]:
            options.append(word)
        elif (shape := VALUES.get(command, {}).get(name)) is not None:
            value = value if equals else left.pop(0) if left else ""
            if not shape.fullmatch(value):
                raise PolicyError(f"{name} {_shown([value])} is not let through")
            options.append(f"{name}={value}")
        elif word == "-" and command in TAKES_DOCUMENT and not documents:
            documents = 1
        elif len(names) < most and name_of.fullmatch(word):
            names.append(word)
        else:
            raise PolicyError(f"{_shown([word])} is not let through: a document comes by standard input (`-`)")
    options += names
    return [*options, "-"] if command in TAKES_DOCUMENT else options


def _shown(arguments: list[str]) -> str:
    text = " ".join(arguments)
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


@frozen(kw_only=True)
class PublicKey:
    """A public key of OpenSSH."""

    type: str
    """`ssh-ed25519`, ..."""
    data: str
    """base64"""
    comment: str
    """empty: none"""


def public_key(text: str) -> PublicKey:
    """The one key of a .pub file. Raises ValueError."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if "PRIVATE KEY" in text:
        raise ValueError("this is a private key; it stays where it is, and the one in the .pub file beside it is meant")
    key = _PUBLIC_KEY.fullmatch(lines[0].strip()) if len(lines) == 1 else None
    if key is None:
        raise ValueError("expected one public key, as in a .pub file of ssh-keygen")
    try:
        base64.b64decode(key[2], validate=True)
    except ValueError:
        raise ValueError("the key itself is not whole") from None
    return PublicKey(type=key[1], data=key[2], comment=key[3] or "")


def authorized_key(key: PublicKey, command: str) -> str:
    """The line for authorized_keys that gives this public key nothing but the gate. Raises ValueError."""
    if any(character in command for character in '"\\\n'):
        raise ValueError(f"a path that cannot stand in authorized_keys: {command}")
    return f'restrict,command="{command}" {key.type} {key.data} {key.comment}'.rstrip()
