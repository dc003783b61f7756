"""The command line: argv in, one call, exit code out. Nothing is computed here."""
