"""Beat: what is to be sent when. `schedules.py`, `crontab.py` and `solar.py` say when, as pure functions of time."""
