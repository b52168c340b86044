# SPDX-License-Identifier: Apache-2.0
"""Thin adapters between SGLang 0.5.23 and `sglang_longflow.core`; `manifest` lists every one."""
