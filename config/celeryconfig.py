"""A sample settings module: ``app.config_from_object("celeryconfig")``.

Copy it beside your project and keep what you need. Names are Celery's; docs/settings.md lists them all. Anything here
can also be set by environment, for example AMQPTASKS_BROKER_URL, which wins over this file.
"""

from amqptasks import Exchange, Queue, binding

# -- RabbitMQ. Several URLs are tried in turn.
broker_url = ["amqp://guest:guest@localhost:5672//"]
broker_heartbeat = 10

# -- Results travel back to the process that sent the task.
result_backend = "rpc://"
result_expires = 3600  # seconds

# -- Modules with tasks, imported by workers.
imports = ("proj.tasks",)

# -- Queues. Without this, one queue named after task_default_queue.
media = Exchange("media", type="topic")
news = Exchange("news", type="fanout")
orders = Exchange("orders", type="headers")

task_queues = (
    Queue("default"),
    # Reached with any routing key that begins with "image." or "video."; two bindings of one queue.
    Queue("media", media, "image.#", bindings=[binding(media, "video.#")]),
    # A copy of everything sent to the exchange.
    Queue("news", news),
    # By message headers rather than by key.
    Queue("orders-eu", orders, binding_arguments={"x-match": "all", "region": "eu"}),
    # Priorities 0 to 5 need a classic queue, and get one.
    Queue("urgent", max_priority=5),
    # Arguments that RabbitMQ knows: here, one worker at a time consumes, the others stand by.
    Queue("ledger", queue_arguments={"x-single-active-consumer": True}),
)
task_default_queue = "default"

# -- Which task goes where: by name, or by a pattern.
task_routes = {
    "proj.tasks.resize": {"queue": "media", "routing_key": "image.resize"},
    "proj.tasks.announce": {"exchange": "news", "exchange_type": "fanout", "routing_key": ""},
    "proj.ledger.*": {"queue": "ledger"},
    "proj.alerts.*": {"queue": "urgent", "priority": 5},
}

# -- Serialization. msgpack is smaller and faster than json; workers must accept what is sent.
task_serializer = "json"
accept_content = ["json", "msgpack"]

# -- Workers. Late acks: a task whose worker dies runs again, so it must bear being run twice.
task_acks_late = True
task_track_started = False
worker_concurrency = 2
worker_prefetch_multiplier = 4

timezone = "UTC"
