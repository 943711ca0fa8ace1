"""The tables of results: column for column those of django-celery-results 2.6, so that queries written for them go on.

Rows are written by `amqptasks.results.django_rows`; a project reads them, and shows them in its admin.
"""

from __future__ import annotations

from typing import Any

from django.db import models

__all__ = ["GroupResult", "TaskResult"]


class TaskResult(models.Model):
    """The newest state of one task."""

    task_id = models.CharField("task id", max_length=255, unique=True)
    periodic_task_name = models.CharField("periodic task", max_length=255, null=True)
    task_name = models.CharField("task", max_length=255, null=True)
    task_args = models.TextField("positional arguments", null=True, help_text="With result_extended.")
    task_kwargs = models.TextField("named arguments", null=True, help_text="With result_extended.")
    status = models.CharField("state", max_length=50, default="PENDING")
    worker = models.CharField("worker", max_length=100, null=True, default=None)
    content_type = models.CharField(max_length=128)
    content_encoding = models.CharField(max_length=64)
    result = models.TextField("result", null=True, default=None, editable=False)
    date_created = models.DateTimeField("first heard of", auto_now_add=True)
    date_started = models.DateTimeField("started", null=True, default=None)
    date_done = models.DateTimeField("last change", help_text="When it was finished, if it is.")
    traceback = models.TextField("traceback", blank=True, null=True)
    meta = models.TextField("children and more", null=True, default=None, editable=False)

    class Meta:
        """The table."""

        ordering = ("-date_done",)
        verbose_name = "task result"
        verbose_name_plural = "task results"
        indexes = (
            models.Index(fields=["task_name"], name="amqptasks_task_name_idx"),
            models.Index(fields=["status"], name="amqptasks_status_idx"),
            models.Index(fields=["worker"], name="amqptasks_worker_idx"),
            models.Index(fields=["date_created"], name="amqptasks_date_created_idx"),
            models.Index(fields=["date_done"], name="amqptasks_date_done_idx"),
            models.Index(fields=["periodic_task_name"], name="amqptasks_periodic_idx"),
        )

    def __str__(self) -> str:
        return f"{self.task_name or 'task'} {self.task_id} ({self.status})"

    def as_dict(self) -> dict[str, Any]:
        """Return what a program may want to know, by column."""
        names = ("task_id", "task_name", "task_args", "task_kwargs", "status", "result", "date_done", "traceback",
                 "meta", "worker")  # fmt: skip
        return {name: getattr(self, name) for name in names}


class GroupResult(models.Model):
    """A group that was saved."""

    group_id = models.CharField("group id", max_length=255, unique=True)
    date_created = models.DateTimeField("first saved", auto_now_add=True)
    date_done = models.DateTimeField("saved")
    content_type = models.CharField(max_length=128)
    content_encoding = models.CharField(max_length=64)
    result = models.TextField("ids", null=True, default=None, editable=False)

    class Meta:
        """The table."""

        ordering = ("-date_done",)
        verbose_name = "group result"
        verbose_name_plural = "group results"
        indexes = (
            models.Index(fields=["date_created"], name="amqptasks_g_date_created_idx"),
            models.Index(fields=["date_done"], name="amqptasks_g_date_done_idx"),
        )

    def __str__(self) -> str:
        return f"group {self.group_id}"

    def as_dict(self) -> dict[str, Any]:
        """Return what a program may want to know, by column."""
        return {"group_id": self.group_id, "result": self.result, "date_done": self.date_done}
