"""RabbitMQ: connections, publishing, consuming, declarations, delays. The only home of pika and tenacity."""
