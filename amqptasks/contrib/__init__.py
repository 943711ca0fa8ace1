"""What amqptasks brings for other frameworks, to be used from theirs."""
