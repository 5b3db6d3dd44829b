"""The command line of mtl: options with ranges, answers in one line, and the runs that commands and recipes share."""
