"""The application: `app.py` puts the parts together, `task.py` is what users call, `sender.py` the one door out."""
