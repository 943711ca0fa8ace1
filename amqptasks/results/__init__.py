"""Results: the record, the contract of a backend, the backends, and the handles that callers hold."""
