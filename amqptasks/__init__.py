"""amqptasks: a distributed task system whose only broker is RabbitMQ."""
