"""A request's way, stage by stage, in plain Python and torch: no SGLang here."""
