"""Compilers of NPUs, each with a check that what it made answers as float does."""
