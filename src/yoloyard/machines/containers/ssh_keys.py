"""The user's public SSH keys: files and agent. None is made here, and no private key is read."""

from __future__ import annotations

from pathlib import Path

from yoloyard.machines.containers.host import Host


def public_keys() -> tuple[list[str], list[str]]:
    """Lines for authorized_keys, each key once, and where each was found."""
    found: dict[str, tuple[str, str]] = {}
    for file in sorted((Path.home() / ".ssh").glob("*.pub")):
        if file.is_file():
            _add(found, file.read_text(encoding="utf-8", errors="replace"), f"~/.ssh/{file.name}")
    _add(found, Host().run(["ssh-add", "-L"]).stdout, "ssh-agent")
    return [line for line, _ in found.values()], list(dict.fromkeys(source for _, source in found.values()))


def _add(found: dict[str, tuple[str, str]], text: str, source: str) -> None:
    for line in text.splitlines():
        kind, _, rest = line.strip().partition(" ")
        is_certificate = "-cert-v01@" in kind  # authorized_keys takes those only from an authority
        if kind.startswith(("ssh-", "ecdsa-", "sk-")) and rest and not is_certificate:
            found.setdefault(rest.split()[0], (line.strip(), source))
