# SPDX-License-Identifier: Apache-2.0
"""For people who watch a server: its stats, the console page, the terminal view. No SGLang here."""
