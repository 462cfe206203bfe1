"""The commands of the command line: options -> a config -> one call."""
