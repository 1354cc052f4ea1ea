"""From tiles to tasks: what a pass hands to the workers."""
