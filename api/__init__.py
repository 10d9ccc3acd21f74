"""The services: one module each, and the kernel that they share."""
