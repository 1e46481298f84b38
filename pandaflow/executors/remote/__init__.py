"""What executors share whose workers do not see the driver: bookkeeping, messages, outcomes."""
