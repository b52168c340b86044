# SPDX-License-Identifier: Apache-2.0
"""What the user said about a deployment beside its size."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from sglang_longflow.deployment.secrets import SecretKey
from sglang_longflow.errors import ConfigError

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
#: What image references consist of; the commands that are printed have it as it is.
_IMAGE = re.compile(r"[\w\[][-\w.:/@\[\]]*", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Settings:
    """Checked words of the command line.

    Attributes
    ----------
    note : str
        Heads every written file.
    hf_secret, api_key_secret : SecretKey or None
        Where pods find the Hugging Face token and the clients' key.
    node_selector, affinity : dict
        As in a pod: which nodes a server may run on.
    """

    out: str
    image: str
    name: str
    namespace: str
    prometheus: str
    router: bool
    note: str
    hf_secret: SecretKey | None = None
    api_key_secret: SecretKey | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    affinity: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for flag, value in (("--name", self.name), ("--namespace", self.namespace)):
            if not _NAME.fullmatch(value):
                raise ConfigError(
                    f"{flag} {value!r}: expected 1 to 40 of a-z, 0-9 and -, a letter first, no - "
                    "at the end"
                )
        if not re.fullmatch(r"https?://[^\s\"']+", self.prometheus):
            raise ConfigError(f"--prometheus {self.prometheus!r}: expected an http(s) address")
        if not self.image_name or not self.image_tag or not _IMAGE.fullmatch(self.image):
            raise ConfigError(
                f"--image {self.image!r:.200}: expected NAME:TAG or NAME@sha256:DIGEST"
            )
        if "@" in self.image and not _DIGEST.fullmatch(self.image_tag):
            raise ConfigError(f"--image {self.image!r}: a digest is sha256: and 64 hex digits")

    @property
    def image_name(self) -> str:
        if "@" in self.image:
            return self.image.split("@")[0]
        # A colon before the last slash is a registry's port.
        head, _, tail = self.image.rpartition(":")
        return head if head and "/" not in tail else self.image

    @property
    def has_registry(self) -> bool:
        """Whether the image's name begins with a registry's host, by Docker's rule."""
        host, is_path, _ = self.image_name.partition("/")
        return bool(is_path) and (host == "localhost" or "." in host or ":" in host)

    @property
    def placement(self) -> dict[str, Any]:
        """What a pod has of node selector and affinity."""
        both = {"nodeSelector": self.node_selector, "affinity": self.affinity}
        return {key: value for key, value in both.items() if value}

    @property
    def secret_commands(self) -> list[str]:
        """Commands that create the namespace and the Secrets that the pods will look for."""
        found = [f"kubectl create namespace {self.namespace}"]
        if self.hf_secret:
            found.append(self.hf_secret.command(self.namespace, "$HF_TOKEN"))
        if self.api_key_secret:
            found.append(self.api_key_secret.command(self.namespace, "$(openssl rand -hex 32)"))
        return found

    @property
    def image_tag(self) -> str:
        """A tag or a digest; empty if the image has none."""
        return self.image[len(self.image_name) + 1 :]
