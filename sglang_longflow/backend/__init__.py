# SPDX-License-Identifier: Apache-2.0
"""The attention backend: wraps SGLang's, redirects full rows' writes and picks their victims."""
