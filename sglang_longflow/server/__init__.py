"""`longflow serve`: settings, checks, the server as a child process and its log."""
