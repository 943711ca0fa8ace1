import json
import os

SECRET_KEY = "only for tests"
DEBUG = False
USE_TZ = True
TIME_ZONE = "Europe/Berlin"
INSTALLED_APPS = ["stock.apps.StockConfig"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["BOOKSHOP_DATABASE"],
        "CONN_MAX_AGE": int(os.environ.get("BOOKSHOP_CONN_MAX_AGE", "0")),
        "OPTIONS": {"timeout": 10},
    }
}
# Left out on purpose, as many projects do: "disable_existing_loggers": False.
LOGGING = {
    "version": 1,
    "handlers": {"nowhere": {"class": "logging.NullHandler"}},
    "root": {"handlers": ["nowhere"], "level": "ERROR"},
}

AMQPTASKS_RESULT_BACKEND = "rpc://"
AMQPTASKS_TASK_TRACK_STARTED = True
# The broker and the queue come from the environment, as AMQPTASKS_BROKER_URL and AMQPTASKS_TASK_DEFAULT_QUEUE.

# What one test adds.
globals().update(json.loads(os.environ.get("BOOKSHOP_SETTINGS", "{}")))
