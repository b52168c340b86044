# SPDX-License-Identifier: Apache-2.0
"""What the user said about a deployment beside its size."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sglang_longflow.errors import ConfigError

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Settings:
    """Checked words of the command line; `note` heads every written file."""

    out: str
    image: str
    name: str
    namespace: str
    prometheus: str
    router: bool
    note: str

    def __post_init__(self) -> None:
        for flag, value in (("--name", self.name), ("--namespace", self.namespace)):
            if not _NAME.fullmatch(value):
                raise ConfigError(
                    f"{flag} {value!r}: expected 1 to 40 of a-z, 0-9 and -, a letter first, no - "
                    "at the end"
                )
        if not re.fullmatch(r"https?://[^\s\"']+", self.prometheus):
            raise ConfigError(f"--prometheus {self.prometheus!r}: expected an http(s) address")
        if not self.image_name or not self.image_tag or re.search(r"[\s\"'$]", self.image):
            raise ConfigError(f"--image {self.image!r}: expected NAME:TAG or NAME@sha256:DIGEST")
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
    def image_tag(self) -> str:
        """A tag or a digest; empty if the image has none."""
        return self.image[len(self.image_name) + 1 :]
