"""From edges to groups, from groups to what is kept, from drops to decisions."""
