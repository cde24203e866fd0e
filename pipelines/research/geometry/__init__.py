"""The paper's geometry on models of this repository: what its figures show, made again with numbers beside them."""
