"""Fuzzing by hand, guided by coverage."""
