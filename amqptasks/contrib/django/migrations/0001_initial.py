"""The tables, as Django 5.2 wrote this down; 4.2 understands it."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Makes them."""

    initial = True

    dependencies: list[tuple[str, str]] = []

    operations = [
        migrations.CreateModel(
            name="GroupResult",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("group_id", models.CharField(max_length=255, unique=True, verbose_name="group id")),
                ("date_created", models.DateTimeField(auto_now_add=True, verbose_name="first saved")),
                ("date_done", models.DateTimeField(verbose_name="saved")),
                ("content_type", models.CharField(max_length=128)),
                ("content_encoding", models.CharField(max_length=64)),
                ("result", models.TextField(default=None, editable=False, null=True, verbose_name="ids")),
            ],
            options={
                "verbose_name": "group result",
                "verbose_name_plural": "group results",
                "ordering": ("-date_done",),
                "indexes": [
                    models.Index(fields=["date_created"], name="amqptasks_g_date_created_idx"),
                    models.Index(fields=["date_done"], name="amqptasks_g_date_done_idx"),
                ],
            },
        ),
        migrations.CreateModel(
            name="TaskResult",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("task_id", models.CharField(max_length=255, unique=True, verbose_name="task id")),
                ("periodic_task_name", models.CharField(max_length=255, null=True, verbose_name="periodic task")),
                ("task_name", models.CharField(max_length=255, null=True, verbose_name="task")),
                (
                    "task_args",
                    models.TextField(help_text="With result_extended.", null=True, verbose_name="positional arguments"),
                ),
                (
                    "task_kwargs",
                    models.TextField(help_text="With result_extended.", null=True, verbose_name="named arguments"),
                ),
                ("status", models.CharField(default="PENDING", max_length=50, verbose_name="state")),
                ("worker", models.CharField(default=None, max_length=100, null=True, verbose_name="worker")),
                ("content_type", models.CharField(max_length=128)),
                ("content_encoding", models.CharField(max_length=64)),
                ("result", models.TextField(default=None, editable=False, null=True, verbose_name="result")),
                ("date_created", models.DateTimeField(auto_now_add=True, verbose_name="first heard of")),
                ("date_started", models.DateTimeField(default=None, null=True, verbose_name="started")),
                (
                    "date_done",
                    models.DateTimeField(help_text="When it was finished, if it is.", verbose_name="last change"),
                ),
                ("traceback", models.TextField(blank=True, null=True, verbose_name="traceback")),
                ("meta", models.TextField(default=None, editable=False, null=True, verbose_name="children and more")),
            ],
            options={
                "verbose_name": "task result",
                "verbose_name_plural": "task results",
                "ordering": ("-date_done",),
                "indexes": [
                    models.Index(fields=["task_name"], name="amqptasks_task_name_idx"),
                    models.Index(fields=["status"], name="amqptasks_status_idx"),
                    models.Index(fields=["worker"], name="amqptasks_worker_idx"),
                    models.Index(fields=["date_created"], name="amqptasks_date_created_idx"),
                    models.Index(fields=["date_done"], name="amqptasks_date_done_idx"),
                    models.Index(fields=["periodic_task_name"], name="amqptasks_periodic_idx"),
                ],
            },
        ),
    ]
