"""Statistics on plain arrays: what makes a decision valid."""
