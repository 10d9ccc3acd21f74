"""The built-in test gateway: a payment provider in a process of its own, with cards that fail in every way that real ones do.

`python -m streams.gateways.test_gateway`; its state is its own, under the platform's data folder.
"""
