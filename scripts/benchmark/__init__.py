"""Measures amqptasks beside Celery and Dramatiq on one RabbitMQ. Run by scripts/bench."""
