"""The Django app that keeps results in a project's own database.

Put ``"amqptasks.contrib.django"`` into ``INSTALLED_APPS``, run ``manage.py migrate``, and set ``result_backend`` to
``"django-db"``.
"""
