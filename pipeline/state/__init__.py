"""Where a partition's state lives between workers: Redis or Valkey, embedded or given."""
