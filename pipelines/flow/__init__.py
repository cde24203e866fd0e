"""What a run goes through besides its stages: what it is bound to, what it costs, what it says, and how it ends."""
