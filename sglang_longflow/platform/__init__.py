"""Where the server runs when there is no GPU."""
