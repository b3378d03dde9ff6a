"""Metrics without torch, and the tests that say whether a difference is one."""
