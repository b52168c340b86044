# SPDX-License-Identifier: Apache-2.0
"""``longflow serve --help``."""

from __future__ import annotations

import pytest

from sglang_longflow.errors import ConfigError
from sglang_longflow.server import options, usage
from sglang_longflow.settings.flags import FLAGS


@pytest.mark.sglang
def test_help_explains_our_flags_and_names_every_one_of_sglangs():
    text = usage.help_text()
    assert max(map(len, text.splitlines())) <= usage.WIDTH
    words = " ".join(text.split())
    for flag in FLAGS:
        assert flag.option in words and " ".join(flag.help.split()) in words
    names = {option.flags[0] for option in options.server_options() if option.group}
    assert len(names) > 400 and names <= set(words.replace(",", "").split())
    for group in ("Model and tokenizer", "Memory and scheduling", "HTTP server"):
        assert f"\n  {group}\n" in text


def test_help_works_without_sglang(monkeypatch):
    def gone():
        raise ConfigError("SGLang is not installed: pip install it")

    monkeypatch.setattr(usage, "server_options", gone)
    text = usage.help_text()
    assert text.endswith("SGLang is not installed: pip install it") and "--kv-victims" in text
