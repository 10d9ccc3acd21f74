"""The local stack, the settings and the command line. `python3 -m infra up` needs nothing but Python."""
