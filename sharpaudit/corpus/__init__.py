"""Prompt files to checked, deduplicated prompts, each with one role."""
