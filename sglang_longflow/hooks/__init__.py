# SPDX-License-Identifier: Apache-2.0
"""Thin adapters between SGLang 0.5.17 and `sglang_longflow.core`; `manifest` lists every one."""
