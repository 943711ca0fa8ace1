import os

from amqptasks import App

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bookshop.settings")

app = App("bookshop")
app.config_from_object("django.conf:settings", namespace="AMQPTASKS")
app.autodiscover_tasks()
