"""What is not about videos: errors, files, processes, progress, settings."""
