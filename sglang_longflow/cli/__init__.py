"""The `longflow` command: `main`, and one file per subcommand."""
