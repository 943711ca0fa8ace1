"""Which test proves of each setting that it does something.

Every setting that acts ("now" in the tables) has a line here: the test that is red when the setting is not heeded. A
name in brackets is one case of that test. This module only looks that the tests are there.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from amqptasks.settings_table import SETTINGS

TESTS = Path(__file__).resolve().parents[1]

_LIMITS = "integration/test_time_limits.py::"
_LOST = "integration/test_lost_runs.py::"
_STOPPING = "integration/test_stopping.py::"
_EFFECTS = "integration/test_settings_effects.py::"
_UNIT = "unit/test_settings_effects.py::"
_CONNECT = f"{_UNIT}test_the_settings_say_what_to_connect_to"
_MESSAGE = f"{_EFFECTS}test_a_setting_is_seen_in_the_message"
_GIVEN_UP = "integration/test_connection_settings.py::test_a_worker_that_is_not_to_wait_for_its_broker_says_so_and_ends"
_DATABASE = "integration/test_database.py::"
_REDIS = "integration/test_redis_settings.py::"
_EVENTS = "integration/test_events.py::"
_RECEIVER = "unit/events/test_receiver.py::test_the_settings_say_what_queue_a_receiver_has"
_LOGS = "unit/test_logs.py::"
_BEAT = "unit/beat/test_scheduler.py::"
_SIGNED = "unit/wire/test_signed.py::"
_CONTROL = "integration/test_control.py::"
_ROUTING = "unit/app/test_routing.py::"

PROOFS = {
    # Remote control
    "control_exchange": f"{_CONTROL}test_the_answers_of_200_workers_are_gathered",
    "control_queue_ttl": f"{_CONTROL}test_the_queue_of_commands_is_as_the_settings_say",
    "control_queue_expires": f"{_CONTROL}test_the_queue_of_commands_is_as_the_settings_say",
    "control_queue_exclusive": f"{_CONTROL}test_a_worker_can_be_without_remote_control_or_with_a_queue_that_stays",
    "control_queue_durable": f"{_CONTROL}test_a_worker_can_be_without_remote_control_or_with_a_queue_that_stays",
    "worker_enable_remote_control": f"{_CONTROL}test_a_worker_can_be_without_remote_control_or_with_a_queue_that_stays",
    "worker_pool_restarts": f"{_CONTROL}test_the_pool_grows_shrinks_and_is_restarted",
    "delay_index": f"{_CONTROL}test_nothing_is_noted_of_delays_where_that_is_not_wanted",
    # General
    "accept_content": f"{_EFFECTS}test_content_that_is_not_accepted_is_not_read",
    "result_accept_content": f"{_EFFECTS}test_an_answer_is_read_if_its_content_is_accepted",
    "timezone": f"{_MESSAGE}[timezone]",
    "imports": "integration/test_queues.py::test_include_and_imports_are_where_a_worker_finds_its_tasks",
    "include": "integration/test_queues.py::test_include_and_imports_are_where_a_worker_finds_its_tasks",
    # Chords
    "task_allow_error_cb_on_chord_header": "unit/canvas/test_chord.py::test_error_callbacks_reach_the_header_if_wanted",
    "chord_join": "interop/test_celery_chords.py::test_chords_of_ours_are_carried_by_workers_of_both_kinds",
    "result_chord_expires": "integration/test_chords.py::test_a_chord_whose_time_is_over_fails",
    "result_chord_retry_interval": "interop/test_celery_unlocking.py::test_the_settings_say_when_it_looks_again",
    # Broker
    "broker_url": f"{_CONNECT}[broker_url]",
    "broker_host": f"{_CONNECT}[broker_host]",
    "broker_port": f"{_CONNECT}[broker_port]",
    "broker_user": f"{_CONNECT}[broker_user]",
    "broker_password": f"{_CONNECT}[broker_password]",
    "broker_vhost": f"{_CONNECT}[broker_vhost]",
    "broker_read_url": f"{_UNIT}test_reading_and_writing_may_be_on_two_brokers",
    "broker_write_url": f"{_UNIT}test_reading_and_writing_may_be_on_two_brokers",
    "broker_failover_strategy": "unit/broker/test_failover.py::test_an_app_takes_its_strategy_from_the_settings",
    "broker_use_ssl": f"{_UNIT}test_tls_is_by_setting",
    "broker_login_method": f"{_UNIT}test_the_login_is_by_setting",
    "broker_heartbeat": "integration/test_outages.py::test_a_dead_link_is_noticed_by_its_heartbeat",
    "broker_connection_timeout": f"{_CONNECT}[broker_connection_timeout]",
    "broker_connection_retry": f"{_GIVEN_UP}[broker_connection_retry]",
    "broker_connection_retry_on_startup": f"{_GIVEN_UP}[broker_connection_retry_on_startup]",
    "broker_connection_max_retries": f"{_GIVEN_UP}[broker_connection_max_retries]",
    "broker_connection_retry_interval_max": "integration/test_connection_settings.py::"
    "test_a_worker_never_waits_longer_between_attempts_than_it_is_told",
    "broker_publish_timeout": "unit/app/test_options.py::test_the_settings_say_how_sends_are_tried",
    "broker_publish_confirm": f"{_EFFECTS}test_sends_wait_for_the_broker_unless_told_otherwise",
    "broker_publish_buffer": "integration/test_sending.py::test_the_buffer_is_bounded_and_says_so",
    # Tasks
    "task_serializer": f"{_MESSAGE}[task_serializer]",
    "task_compression": f"{_MESSAGE}[task_compression]",
    "task_default_queue": f"{_ROUTING}test_the_default_queue_can_have_another_name",
    "task_default_queue_type": "integration/test_sending.py::test_a_queue_with_other_arguments_is_shown_side_by_side",
    "task_default_exchange": f"{_ROUTING}test_a_default_exchange_of_another_type_gets_the_key",
    "task_default_exchange_type": f"{_ROUTING}test_a_default_exchange_of_another_type_gets_the_key",
    "task_default_routing_key": f"{_ROUTING}test_a_default_exchange_of_another_type_gets_the_key",
    "task_default_delivery_mode": f"{_MESSAGE}[task_default_delivery_mode]",
    "task_default_priority": f"{_MESSAGE}[task_default_priority]",
    "task_queues": "integration/test_queues.py::test_one_worker_serves_every_declared_queue",
    "task_queue_max_priority": "integration/test_priorities.py::test_the_task_of_the_highest_priority_goes_first",
    "task_inherit_parent_priority": "integration/test_priorities.py::"
    "test_what_a_task_sends_has_its_priority_unless_it_has_its_own",
    "task_queue_prefix": f"{_EFFECTS}test_delayed_tasks_wait_in_queues_of_the_name_and_type_that_are_set",
    "task_create_missing_queues": f"{_ROUTING}test_queues_that_are_not_declared_are_made_or_refused",
    "task_create_missing_queue_type": f"{_EFFECTS}test_a_queue_that_is_only_named_has_the_type_that_is_set",
    "task_create_missing_queue_exchange_type": f"{_EFFECTS}"
    "test_a_queue_that_is_only_named_has_an_exchange_of_the_type_that_is_set",
    "task_routes": f"{_ROUTING}test_routes_may_be_given_in_every_form",
    "task_annotations": "integration/test_task_classes.py::test_annotations_hold_in_a_worker",
    "task_default_rate_limit": "integration/test_rate_limits.py::test_the_default_rate_holds_for_tasks_without_one",
    "task_acks_late": f"{_EFFECTS}test_a_message_is_delivered_as_often_as_the_setting_says",
    "task_acks_on_failure_or_timeout": f"{_EFFECTS}test_a_failure_is_rejected_by_setting",
    "task_acks_on_failure": f"{_EFFECTS}test_a_failure_alone_is_rejected_by_setting",
    "task_acks_on_timeout": f"{_LIMITS}test_a_late_task_comes_back_from_its_limit_by_setting_unless_it_says_otherwise",
    "task_reject_on_worker_lost": f"{_EFFECTS}test_a_task_whose_child_died_fails_by_setting",
    "task_retry_on_worker_lost": f"{_LOST}test_a_task_whose_child_died_is_tried_again[early]",
    "worker_deduplicate_successful_tasks": f"{_LOST}test_a_success_that_is_stored_is_not_run_again",
    "worker_cancel_long_running_tasks_on_connection_loss": f"{_LOST}"
    "test_running_late_ack_tasks_are_cancelled_with_their_connection",
    "worker_proc_alive_timeout": f"{_LOST}test_a_child_that_is_not_ready_in_time_is_replaced",
    "task_crash_limit": f"{_EFFECTS}test_a_task_may_cost_as_many_children_as_the_setting_says",
    "task_delivery_limit": f"{_EFFECTS}test_a_message_is_delivered_as_often_as_the_setting_says",
    "task_dead_letter_suffix": f"{_EFFECTS}test_a_failure_is_rejected_by_setting",
    "task_dead_letter_ttl": "integration/test_dead_letters.py::"
    "test_letters_go_after_their_time_and_a_changed_limit_is_told",
    "task_dead_letter_max_length": "integration/test_dead_letters.py::"
    "test_the_number_of_letters_is_bounded_and_failures_count",
    "task_dead_letter_on_failure": "integration/test_dead_letters.py::"
    "test_the_number_of_letters_is_bounded_and_failures_count",
    "task_revoke_expires": f"{_EFFECTS}test_orders_to_revoke_are_kept_as_long_as_the_setting_says",
    "task_revokes_max": f"{_EFFECTS}test_a_worker_keeps_as_many_revoked_ids_in_mind_as_it_is_told",
    "task_message_max_bytes": f"{_EFFECTS}test_a_body_is_read_within_the_limits_that_are_set[task_message_max_bytes]",
    "task_message_max_items": f"{_EFFECTS}test_a_body_is_read_within_the_limits_that_are_set[task_message_max_items]",
    "task_message_max_depth": f"{_EFFECTS}test_a_body_is_read_within_the_limits_that_are_set[task_message_max_depth]",
    "task_ignore_result": "integration/test_results.py::test_results_are_ignored_by_setting",
    "task_persist_result": "integration/test_kept_results.py::"
    "test_a_kept_result_can_be_read_by_any_process_and_as_often_as_wanted",
    "task_store_errors_even_if_ignored": "integration/test_seed.py::test_results_are_ignored_globally_and_errors_kept",
    "task_track_started": f"{_EFFECTS}test_answers_are_written_as_the_settings_say",
    "task_time_limit": f"{_LIMITS}test_a_task_sees_the_limits_that_apply",
    "task_soft_time_limit": f"{_LIMITS}test_a_task_sees_the_limits_that_apply",
    "task_always_eager": "unit/app/test_eager.py::test_a_failure_is_a_result_and_its_traceback_is_told",
    "task_eager_propagates": "unit/app/test_eager.py::test_a_failure_is_a_result_and_its_traceback_is_told",
    "task_store_eager_result": "unit/app/test_eager.py::test_results_are_stored_if_they_are_to_be",
    "task_publish_retry": "unit/app/test_options.py::test_the_settings_say_how_sends_are_tried",
    "task_publish_retry_policy": "unit/app/test_options.py::test_the_settings_say_how_sends_are_tried",
    "task_repr_maxlevels": f"{_MESSAGE}[task_repr_maxlevels]",
    "delay_queue_type": f"{_EFFECTS}test_delayed_tasks_wait_in_queues_of_the_name_and_type_that_are_set",
    # Results
    "result_backend": f"{_UNIT}test_results_go_where_the_setting_says",
    "result_serializer": f"{_EFFECTS}test_answers_are_written_as_the_settings_say",
    "result_backend_transport_options": "integration/test_file_store.py::test_a_prefix_keeps_fleets_apart",
    "result_compression": f"{_UNIT}test_results_are_compressed_by_setting",
    "result_failure_expires": f"{_REDIS}test_results_and_failures_expire_as_they_are_to",
    "result_expires": f"{_DATABASE}test_nothing_expires_where_nothing_is_to",
    "result_extended": "integration/test_stored_results.py::test_a_result_is_there_for_every_process",
    "result_persistent": f"{_EFFECTS}test_answers_are_written_as_the_settings_say",
    "result_cache_max": f"{_UNIT}test_a_process_keeps_as_many_results_as_it_is_told",
    "rpc_queue_max_length": f"{_UNIT}test_a_reply_queue_holds_as_many_results_as_it_is_told",
    "result_backend_always_retry": f"{_DATABASE}test_settings_say_how_often_to_try",
    "result_backend_max_retries": f"{_DATABASE}test_settings_say_how_often_to_try",
    "result_backend_base_sleep_between_retries_ms": f"{_UNIT}test_waits_for_a_store_are_by_setting",
    "result_backend_max_sleep_between_retries_ms": f"{_UNIT}test_waits_for_a_store_are_by_setting",
    "override_backends": "unit/results/test_registry.py::test_names_can_be_overridden_and_added",
    # Result stores
    "cache_backend": "integration/test_django_results.py::test_a_cache_keeps_results_for_any_process",
    "mongodb_backend_settings": "integration/test_mongodb_store.py::test_database_and_collections_can_have_other_names",
    "cache_backend_options": "integration/test_memcached_store.py::test_options_go_to_the_client",
    "redis_host": f"{_REDIS}test_the_settings_name_the_server_where_the_url_does_not",
    "redis_port": f"{_REDIS}test_the_settings_name_the_server_where_the_url_does_not",
    "redis_db": f"{_REDIS}test_the_settings_name_the_server_where_the_url_does_not",
    "redis_username": f"{_REDIS}test_the_settings_name_the_server_where_the_url_does_not",
    "redis_password": f"{_REDIS}test_the_settings_name_the_server_where_the_url_does_not",
    "redis_max_connections": f"{_REDIS}test_no_more_connections_are_opened_than_may_be",
    "redis_backend_use_ssl": f"{_REDIS}test_tls_is_by_setting",
    "redis_socket_timeout": f"{_REDIS}test_a_command_may_take_as_long_as_is_set",
    "redis_socket_connect_timeout": f"{_REDIS}test_connecting_may_take_as_long_as_is_set",
    "redis_retry_on_timeout": f"{_REDIS}test_a_command_that_timed_out_is_repeated_once_if_that_is_set",
    "redis_socket_keepalive": f"{_REDIS}test_connections_are_kept_alive_if_that_is_set",
    "redis_backend_health_check_interval": f"{_REDIS}test_idle_connections_are_checked_if_that_is_set",
    "redis_backend_credential_provider": f"{_REDIS}test_credentials_can_be_supplied",
    "database_url": "unit/results/test_registry.py::test_the_database_can_have_a_setting_of_its_own",
    "database_engine_options": f"{_DATABASE}test_connections_are_kept_unless_they_are_to_be_short_lived",
    "database_engine_callback": f"{_DATABASE}test_new_engines_are_shown_to_a_callback",
    "database_short_lived_sessions": f"{_DATABASE}test_connections_are_kept_unless_they_are_to_be_short_lived",
    "database_table_schemas": f"{_DATABASE}test_tables_can_have_other_names_and_schemas",
    "database_table_names": f"{_DATABASE}test_tables_can_have_other_names_and_schemas",
    "database_create_tables_at_setup": f"{_DATABASE}"
    "test_tables_are_made_beforehand_unless_that_is_left_to_the_first_result",
    # Worker: concurrency, pool and prefetch are set by their options
    "worker_concurrency": "integration/test_worker.py::test_as_many_tasks_run_at_once_as_there_are_slots",
    "worker_pool": "integration/test_worker.py::test_every_pool_runs_tasks_where_it_says",
    "worker_autoscale_keepalive": "integration/test_autoscaling.py::"
    "test_the_pool_grows_to_its_work_and_shrinks_after_it",
    "worker_asyncio_threads": f"{_EFFECTS}test_the_asyncio_pool_runs_as_many_plain_tasks_at_once_as_it_is_told",
    "worker_direct": "integration/test_broadcasts.py::test_a_worker_can_be_sent_a_task_of_its_own",
    "worker_prefetch_multiplier": "integration/test_worker.py::test_a_worker_fetches_as_much_ahead_as_it_is_told",
    "worker_disable_prefetch": "integration/test_prefetch.py::"
    "test_no_more_is_prefetched_than_runs_where_that_is_disabled",
    "worker_settlement_limit": f"{_EFFECTS}test_no_more_tasks_begin_than_may_wait_for_their_confirms",
    "worker_shutdown_timeout": "integration/test_stopping.py::test_a_warm_stop_that_takes_too_long_becomes_cold",
    "worker_soft_shutdown_timeout": f"{_STOPPING}test_a_soft_stop_becomes_cold_in_the_end",
    "worker_enable_soft_shutdown_on_idle": f"{_STOPPING}test_an_idle_worker_waits_in_a_soft_stop_if_it_is_told_to",
    "worker_max_tasks_per_child": f"{_LIMITS}test_children_are_replaced_after_so_many_tasks",
    "worker_max_memory_per_child": f"{_LIMITS}test_a_child_with_too_much_memory_is_replaced_after_its_task",
    "worker_disable_rate_limits": "integration/test_rate_limits.py::test_a_worker_told_to_ignore_rates_runs_everything",
    "worker_hijack_root_logger": f"{_LOGS}test_a_programs_own_handlers_stay_where_the_worker_may_not_take_over",
    "worker_log_color": f"{_LOGS}test_colours_are_for_terminals",
    "worker_log_format": f"{_LOGS}test_the_formats_are_settings",
    "worker_task_log_format": f"{_LOGS}test_the_formats_are_settings",
    "worker_log_datefmt": f"{_LOGS}test_dates_are_written_as_the_settings_say",
    "worker_task_log_datefmt": f"{_LOGS}test_dates_are_written_as_the_settings_say",
    "worker_log_json": f"{_LOGS}test_a_log_of_json_has_one_object_a_line",
    "worker_redirect_stdouts": "integration/test_logging.py::test_what_is_printed_stays_where_it_is_if_it_is_to",
    "worker_redirect_stdouts_level": "integration/test_logging.py::test_what_tasks_print_is_in_the_log_at_the_level",
    # Events
    "task_send_sent_event": f"{_EVENTS}test_a_program_tells_what_it_sends",
    "worker_send_task_events": f"{_EVENTS}test_a_task_is_told_from_beginning_to_end",
    "event_exchange": f"{_EVENTS}test_the_settings_say_where_and_how_events_are_published",
    "event_serializer": f"{_EVENTS}test_the_settings_say_where_and_how_events_are_published",
    "event_queue_prefix": f"{_RECEIVER}[event_queue_prefix]",
    "event_queue_ttl": f"{_RECEIVER}[event_queue_ttl]",
    "event_queue_expires": f"{_RECEIVER}[event_queue_expires]",
    "event_queue_exclusive": f"{_RECEIVER}[event_queue_exclusive]",
    "event_queue_durable": f"{_RECEIVER}[event_queue_durable]",
    # Security
    "security_key": f"{_SIGNED}test_what_somebody_trusted_signed_is_read",
    "security_key_password": f"{_SIGNED}test_keys_and_certificates_that_do_not_serve_are_named",
    "security_certificate": f"{_SIGNED}test_what_somebody_trusted_signed_is_read",
    "security_cert_store": f"{_SIGNED}test_what_somebody_trusted_signed_is_read",
    "security_digest": f"{_SIGNED}test_every_digest_signs_and_reads",
    "security_max_age": f"{_SIGNED}test_the_settings_say_how_much_is_believed",
    "security_require_binding": f"{_SIGNED}test_the_settings_say_how_much_is_believed",
    "beat_enable_remote_control": f"{_BEAT}test_a_beat_that_is_busy_for_too_long_is_silent",
    "beat_remote_control_max_tick_age": f"{_BEAT}test_a_beat_that_is_busy_for_too_long_is_silent",
    "beat_schedule": f"{_BEAT}test_a_new_entry_is_sent_when_its_interval_is_over",
    "beat_scheduler": f"{_BEAT}test_the_scheduler_is_chosen_by_setting_or_option",
    "beat_schedule_filename": f"{_BEAT}test_settings_say_how_often_to_look_and_to_write",
    "beat_schedule_name": f"{_BEAT}test_the_schedules_name_is_the_apps_unless_it_is_said",
    "beat_sync_every": f"{_BEAT}test_settings_say_how_often_to_look_and_to_write",
    "beat_max_loop_interval": f"{_BEAT}test_settings_say_how_often_to_look_and_to_write",
    "beat_cron_starting_deadline": f"{_BEAT}test_runs_that_are_too_late_are_left_out_by_the_setting",
    "beat_missed_runs": f"{_BEAT}test_missed_runs_are_made_up_for_as_the_entry_says",
    "beat_missed_runs_max": f"{_BEAT}test_missed_runs_are_made_up_for_as_the_entry_says",
}


@functools.cache
def functions_of(path: str) -> dict[str, str]:
    """The tests of a module, each with its source and that of its decorators."""
    file = TESTS / path
    if not file.is_file():
        return {}
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


def fault_of(proof: str) -> str | None:
    """What is wrong with the name of a test, if anything."""
    path, _, test = proof.partition("::")
    name, _, case = test.partition("[")
    source = functions_of(path).get(name)
    if source is None:
        return f"there is no test {proof}"
    return f"{path}::{name} has no case {case[:-1]}" if case[:-1] not in source else None


def test_every_setting_that_acts_is_proved_to_act() -> None:
    # Given the settings that act / When the tests that prove it are looked for
    now = {name for name, setting in SETTINGS.items() if setting.since == "now"}
    without = sorted(now - PROOFS.keys())
    # Then each has one
    assert not without, f"add to PROOFS the tests that prove that these settings act: {', '.join(without)}"
    # And no line is left over from a setting that is gone, or does not act
    assert sorted(PROOFS.keys() - now) == []


def test_every_proof_is_there() -> None:
    faults = {name: fault_of(proof) for name, proof in PROOFS.items()}
    assert {name: fault for name, fault in faults.items() if fault} == {}


def test_a_missing_test_or_case_is_found() -> None:
    # Given names of tests that are not there / When they are looked for / Then that is told
    here = "unit/test_settings_proofs.py::"
    assert fault_of(f"{here}test_every_proof_is_there") is None
    assert fault_of(f"{here}test_no_such_thing") == f"there is no test {here}test_no_such_thing"
    assert "there is no test" in (fault_of("unit/no_such_file.py::test_x") or "")
    assert fault_of(f"{here}test_every_proof_is_there[a case]") == f"{here}test_every_proof_is_there has no case a case"
