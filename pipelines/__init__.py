"""Binds the library to storage, to Ray and to the command line."""
