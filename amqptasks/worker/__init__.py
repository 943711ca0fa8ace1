"""The worker: `worker.py` puts the parts together, `deliveries.py` leads each message to its end, `pools/` run the
tasks."""
