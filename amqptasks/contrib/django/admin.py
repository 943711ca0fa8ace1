"""Results in Django's admin: to look at, and to delete."""

from __future__ import annotations

from typing import Any

from django.contrib import admin

from amqptasks.contrib.django.models import GroupResult, TaskResult

__all__ = ["GroupResultAdmin", "TaskResultAdmin"]


class _Kept(admin.ModelAdmin):
    """Workers write results; people read them."""

    actions_on_top = True
    date_hierarchy = "date_done"

    def has_add_permission(self, request: Any) -> bool:
        """Nobody adds one by hand."""
        del request
        return False

    def get_readonly_fields(self, request: Any, obj: Any = None) -> list[str]:
        """Show every column, and let none be changed."""
        del request, obj
        return [field.name for field in self.model._meta.fields]


@admin.register(TaskResult)
class TaskResultAdmin(_Kept):
    """Tasks by state, name, worker and day."""

    list_display = ("task_id", "task_name", "status", "worker", "date_created", "date_done")
    list_filter = ("status", "date_done", "task_name", "worker")
    search_fields = ("task_id", "task_name", "status", "task_args", "task_kwargs", "worker")


@admin.register(GroupResult)
class GroupResultAdmin(_Kept):
    """Saved groups by day."""

    list_display = ("group_id", "date_created", "date_done")
    list_filter = ("date_done",)
    search_fields = ("group_id",)
