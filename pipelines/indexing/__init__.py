"""A reference index built by many processes, and gone on with after a build that was ended."""
