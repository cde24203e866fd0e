"""The report: facts from the tables, and a page made of facts alone."""
