"""``longflow demo``."""

from sglang_longflow.demo.run import add_arguments, run

__all__ = ["add_arguments", "run"]
