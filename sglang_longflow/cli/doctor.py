# SPDX-License-Identifier: Apache-2.0
"""``longflow doctor``: the command line of `server.doctor`."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``longflow doctor``; `main` adds what follows ``--``."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--no-device",
        action="store_true",
        help="leave the device out: an image is built on a machine without the GPU it is for",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if a budget server would not work, else 0."""
    from sglang_longflow.server import doctor

    return doctor.run(args.server_arguments, device=not args.no_device, as_json=args.json)
