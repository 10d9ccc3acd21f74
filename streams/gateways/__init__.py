"""Payment gateways: the interface, an adapter each, and the built-in test gateway, which is a service of its own."""
