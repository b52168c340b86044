"""What asks a server: budgets in frontend programs, small HTTP requests."""
