"""Tables on disk: schemas, the commit protocol, the run folder, and SQL over them."""
