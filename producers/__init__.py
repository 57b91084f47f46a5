"""What writes events into a topic, one file each."""
