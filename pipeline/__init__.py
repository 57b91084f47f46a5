"""What every role shares: a pure core (readings to alerts) and its edges (bus, state, loop)."""
