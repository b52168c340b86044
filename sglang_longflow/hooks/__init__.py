"""Thin adapters between SGLang 0.5.17 and `sglang_longflow.flow`; `manifest` lists every one."""
