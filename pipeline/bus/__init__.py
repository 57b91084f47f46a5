"""Logs of partitioned topics with offsets, consumer groups and atomic commits."""
