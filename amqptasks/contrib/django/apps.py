"""The app's name and label."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["AmqptasksConfig"]


class AmqptasksConfig(AppConfig):
    """Results of tasks, as rows."""

    name = "amqptasks.contrib.django"
    label = "amqptasks"
    verbose_name = "amqptasks"
    default_auto_field = "django.db.models.BigAutoField"
