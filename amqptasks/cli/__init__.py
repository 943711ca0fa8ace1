"""The command line. Finds the app, calls the parts below, and renders what they say."""
