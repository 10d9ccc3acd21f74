"""Read models: one module a domain, pure functions from an event to changes. `kernel` holds the tables and the three sinks."""
