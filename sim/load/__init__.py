"""The load generator: when requests arrive, how they are sent, what they took."""
