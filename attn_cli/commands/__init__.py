"""One file a command. Each is imported only when it runs, after its configuration was validated."""
