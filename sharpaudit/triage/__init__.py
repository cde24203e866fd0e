"""Which prompts are flagged, and which are generated."""
