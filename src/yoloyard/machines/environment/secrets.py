"""What may be written beside a run: no passwords, keys or tokens of command lines, addresses and variables."""

import os
import re
from collections.abc import Mapping, Sequence

HIDDEN = "***"
# Variables that can change results or how a run goes; nothing else of the environment is written.
VARIABLES = {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG",
             "OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_LIBRARY_PATH", "PYTHONHASHSEED", "WORLD_SIZE",
             "LOCAL_WORLD_SIZE"}  # fmt: skip
PREFIXES = ("NCCL_", "TORCH_", "PYTORCH_", "TORCHINDUCTOR_", "GLOO_", "NVIDIA_TF32_")

_SECRET_NAME = re.compile(r"token|key|secret|passw|passphrase|\bpass\b|pwd|credential|auth|hash", re.IGNORECASE)
_USER_IN_ADDRESS = re.compile(r"(?<=://)[^/\s]+@")
_IN_QUERY = re.compile(r"(?i)([?&](?:[^=&\s]*(?:token|key|secret|signature|credential|password)[^=&\s]*|sig)=)[^&\s]+")
_KEYS = re.compile(
    r"\b[0-9a-f]{40}\b"  # Weights & Biases
    r"|\bwandb_v\d+_\w+"
    r"|\b(?:hf_|gh[opsu]_|github_pat_|glpat-|sk-|xox[bp]-)[\w-]{10,}"  # Hugging Face, GitHub, GitLab, others
    r"|\bA[KS]IA[0-9A-Z]{16}\b"  # Amazon
    r"|(?<=[Bb]earer )\S+"  # the header of many
)


def without_secrets(text: str) -> str:
    """`text` with the users and passwords of addresses, and what looks like a key, replaced by `***`."""
    return _KEYS.sub(HIDDEN, _IN_QUERY.sub(rf"\1{HIDDEN}", _USER_IN_ADDRESS.sub(f"{HIDDEN}@", text)))


def command_without_secrets(argv: Sequence[str]) -> list[str]:
    """A command line; the values of flags that are named like secrets (`--api-key X`, `--token=X`) are hidden too."""
    found: list[str] = []
    hide_next = False
    for word in argv:
        flag, equals, _ = word.partition("=")
        if hide_next and not word.startswith("--"):
            found.append(HIDDEN)
        elif equals and _SECRET_NAME.search(flag):
            found.append(f"{flag}={HIDDEN}")
        else:
            found.append(without_secrets(word))
        hide_next = word.startswith("-") and not equals and bool(_SECRET_NAME.search(flag))
    return found


def variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The listed variables that are set, without those named like secrets."""
    named = {name for name in environment if name.startswith(PREFIXES) and not _SECRET_NAME.search(name)}
    return {name: without_secrets(environment[name]) for name in sorted(named | (VARIABLES & environment.keys()))}
