# SPDX-License-Identifier: Apache-2.0
"""The `longflow` command: `main`, and one file per subcommand."""
