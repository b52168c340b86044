# SPDX-License-Identifier: Apache-2.0
"""Names of Secrets that a deployment reads, and who needs one. No value is ever written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sglang_longflow.errors import ConfigError

#: Variables of the pods: huggingface_hub's, and what `longflow serve` takes the key from.
TOKEN_VARIABLE, KEY_VARIABLE = "HF_TOKEN", "LONGFLOW_API_KEY"
#: Organisations whose models mostly ask for a login.
GATED = ("meta-llama", "google", "mistralai")

_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


@dataclass(frozen=True)
class SecretKey:
    """A key of a Secret that exists, or that the printed commands create."""

    name: str
    key: str

    @classmethod
    def parse(cls, flag: str, word: str | None, key: str) -> SecretKey | None:
        """From ``NAME`` or ``NAME:KEY``, with the key that a name alone stands for.

        Raises
        ------
        ConfigError
            Kubernetes would not take the names.
        """
        if word is None:
            return None
        name, is_keyed, given = word.partition(":")
        if not _NAME.fullmatch(name) or (is_keyed and not _KEY.fullmatch(given)):
            raise ConfigError(
                f"{flag} {word!r}: expected a Secret's NAME or NAME:KEY, the name of a-z, 0-9, . "
                "and -"
            )
        return cls(name, given or key)

    def variable(self, name: str) -> dict[str, Any]:
        """The entry of a container's ``env``."""
        return {"name": name, "valueFrom": {"secretKeyRef": {"name": self.name, "key": self.key}}}

    def command(self, namespace: str, value: str) -> str:
        """What creates it; `value` is a word of the shell, so that no secret is printed."""
        return (
            f"kubectl -n {namespace} create secret generic {self.name} "
            f'--from-literal={self.key}="{value}"'
        )


def needs_login(model_path: str) -> bool:
    """Whether the model's organisation mostly asks for a login before a download."""
    organisation, is_name, _ = model_path.partition("/")
    return bool(is_name) and organisation.lower() in GATED
