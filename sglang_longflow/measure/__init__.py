"""What a budget costs in answers, measured through a real server."""
