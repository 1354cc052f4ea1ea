"""What dpipe speaks of: columns and decisions, events, passes and reasons, files of a folder."""
