"""The command line, `finercam`."""
