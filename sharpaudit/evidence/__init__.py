"""What lets a stranger check a run: the seal over its files, and the checks behind `sharpaudit verify`."""
