"""The roles that read topics, one file each."""
