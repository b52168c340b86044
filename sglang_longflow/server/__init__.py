# SPDX-License-Identifier: Apache-2.0
"""`longflow serve`: settings, checks, the server as a child process and its log."""
