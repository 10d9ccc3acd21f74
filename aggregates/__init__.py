"""The domains: one module each, an event-sourced aggregate with its events and its rules."""
