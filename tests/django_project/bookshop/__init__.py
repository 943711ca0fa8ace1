"""A small Django project with tasks, as a user writes it. ``tests/integration/test_django.py`` runs workers on it."""

from bookshop.celery import app

__all__ = ["app"]
