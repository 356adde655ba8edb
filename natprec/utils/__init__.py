"""What all other folders use: files, processes, progress, seeds, statistics, options and schemas."""
