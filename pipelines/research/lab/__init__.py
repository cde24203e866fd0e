"""The lab from nothing: pictures and captions, training, labels, and what is published of it."""
