# SPDX-License-Identifier: Apache-2.0
"""What a budget buys on a GPU: arithmetic only, no torch, no SGLang."""
