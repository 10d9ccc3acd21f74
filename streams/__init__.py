"""What runs between Kafka and the stores: the relay, the workers, sagas, reactors and rules."""
